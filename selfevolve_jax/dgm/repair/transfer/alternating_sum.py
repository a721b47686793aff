"""The first minus the second plus the third …; the mistake: the signs the wrong way round."""


def alternating_sum(numbers):
    total = 0
    for i in range(len(numbers)):
        if i % 2 == 0:
            total += numbers[i]
        else:
            total -= numbers[i]
    return total


FAULTY = """
def alternating_sum(numbers):
    total = 0
    for i in range(len(numbers)):
        if i % 2 == 1:
            total += numbers[i]
        else:
            total -= numbers[i]
    return total
"""

CASES = [
    ([[5, 2]], 3),
    ([[3]], 3),
    ([[]], 0),
    ([[1, 1]], 0),
    ([[4, 1, 1]], 4),
    ([[0, 6]], -6),
    ([[2, 2, 2]], 2),
    ([[10, 3, 1, 4]], 4),
]
