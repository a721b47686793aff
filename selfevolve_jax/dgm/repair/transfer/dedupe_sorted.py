"""Each number of a sorted list once; the mistake: it compares with the first, not the last."""


def dedupe_sorted(numbers):
    kept = []
    for number in numbers:
        if not kept or kept[-1] != number:
            kept.append(number)
    return kept


FAULTY = """
def dedupe_sorted(numbers):
    kept = []
    for number in numbers:
        if not kept or kept[0] != number:
            kept.append(number)
    return kept
"""

CASES = [
    ([[1, 1, 2, 2]], [1, 2]),
    ([[]], []),
    ([[1]], [1]),
    ([[3, 3, 3, 4, 4]], [3, 4]),
    ([[0, 1, 1]], [0, 1]),
    ([[2, 2]], [2]),
    ([[5, 6, 6, 6, 7, 7]], [5, 6, 7]),
    ([[1, 2, 2, 3, 3]], [1, 2, 3]),
    ([[4, 4, 4]], [4]),
    ([[8, 9, 9]], [8, 9]),
]
