"""The sum of 1 to n; the mistake: the formula for n - 1."""


def triangular(n):
    return n * (n + 1) // 2


FAULTY = """
def triangular(n):
    return n * (n - 1) // 2
"""

CASES = [
    ([1], 1),
    ([2], 3),
    ([3], 6),
    ([0], 0),
    ([4], 10),
    ([10], 55),
    ([7], 28),
    ([5], 15),
]
