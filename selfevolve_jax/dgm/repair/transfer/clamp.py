"""A number brought between two others; the mistake: min and max are the wrong way round."""


def clamp(value, low, high):
    return max(low, min(value, high))


FAULTY = """
def clamp(value, low, high):
    return min(low, max(value, high))
"""

CASES = [
    ([5, 0, 10], 5),
    ([-3, 0, 10], 0),
    ([15, 0, 10], 10),
    ([0, 0, 10], 0),
    ([10, 0, 10], 10),
    ([7, 7, 7], 7),
    ([3, 4, 6], 4),
    ([9, 4, 6], 6),
]
