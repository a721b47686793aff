"""The whole part of a square root; the mistake: for 1 the search never looks at 1."""


def integer_root(n):
    low = 0
    high = n + 1
    while high - low > 1:
        middle = (low + high) // 2
        if middle * middle <= n:
            low = middle
        else:
            high = middle
    return low


FAULTY = """
def integer_root(n):
    low = 0
    high = n
    while high - low > 1:
        middle = (low + high) // 2
        if middle * middle <= n:
            low = middle
        else:
            high = middle
    return low
"""

CASES = [
    ([1], 1),
    ([1], 1),
    ([0], 0),
    ([4], 2),
    ([8], 2),
    ([9], 3),
    ([15], 3),
    ([16], 4),
    ([2], 1),
    ([100], 10),
]
