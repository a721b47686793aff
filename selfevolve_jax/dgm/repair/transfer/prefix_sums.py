"""Sums of the first 0, 1, 2 … numbers; the mistake: the sum of none is missing."""


def prefix_sums(numbers):
    total = 0
    sums = [0]
    for number in numbers:
        total += number
        sums.append(total)
    return sums


FAULTY = """
def prefix_sums(numbers):
    total = 0
    sums = []
    for number in numbers:
        total += number
        sums.append(total)
    return sums
"""

CASES = [
    ([[1, 2, 3]], [0, 1, 3, 6]),
    ([[]], [0]),
    ([[5]], [0, 5]),
    ([[-1, 1]], [0, -1, 0]),
    ([[0, 0]], [0, 0, 0]),
    ([[4, -4, 4]], [0, 4, 0, 4]),
    ([[10, 20]], [0, 10, 30]),
    ([[7, 1, 1, 1]], [0, 7, 8, 9, 10]),
]
