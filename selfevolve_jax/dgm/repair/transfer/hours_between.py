"""Hours from one time to another on a clock; the mistake: past midnight it is negative."""


def hours_between(start, end):
    return (end - start) % 24


FAULTY = """
def hours_between(start, end):
    return end - start
"""

CASES = [
    ([22, 3], 5),
    ([23, 1], 2),
    ([9, 17], 8),
    ([0, 0], 0),
    ([20, 8], 12),
    ([12, 11], 23),
    ([5, 6], 1),
    ([18, 0], 6),
]
