"""A price in cents with tax; the mistake: the rate is not per cent."""


def gross_price(net, rate):
    return net + net * rate // 100


FAULTY = """
def gross_price(net, rate):
    return net + rate // 100
"""

CASES = [
    ([1000, 20], 1200),
    ([500, 10], 550),
    ([100, 0], 100),
    ([0, 20], 0),
    ([250, 8], 270),
    ([999, 19], 1188),
    ([10000, 7], 10700),
    ([50, 50], 75),
]
