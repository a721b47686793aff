"""Which values lie strictly between two bounds; the mistake: "or" for "and"."""


def inside(values, low, high):
    return [value for value in values if value > low and value < high]


FAULTY = """
def inside(values, low, high):
    return [value for value in values if value > low or value < high]
"""

CASES = [
    ([[1, 5, 9], 2, 8], [5]),
    ([[0], 1, 3], []),
    ([[2, 3], 1, 4], [2, 3]),
    ([[], 0, 1], []),
    ([[4, 10], 3, 6], [4]),
    ([[1, 2, 3], 1, 3], [2]),
    ([[5], 5, 9], []),
    ([[-4, 0, 4], -3, 3], [0]),
]
