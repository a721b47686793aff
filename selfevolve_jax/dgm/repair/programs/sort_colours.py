"""Sorts 0, 1 and 2 in one pass."""


def sort_colours(colours):
    result = list(colours)
    low = 0
    here = 0
    high = len(result) - 1
    while here <= high:
        if result[here] == 0:
            result[low], result[here] = result[here], result[low]
            low += 1
            here += 1
        elif result[here] == 2:
            result[here], result[high] = result[high], result[here]
            high -= 1
        else:
            here += 1
    return result


CASES = [
    ([[2, 0, 1]], [0, 1, 2]),
    ([[]], []),
    ([[1]], [1]),
    ([[2, 1, 0]], [0, 1, 2]),
    ([[0, 0, 2, 2]], [0, 0, 2, 2]),
    ([[1, 1, 0]], [0, 1, 1]),
    ([[2, 2, 1, 1, 0, 0]], [0, 0, 1, 1, 2, 2]),
    ([[0, 1, 2]], [0, 1, 2]),
    ([[2, 0, 2, 0]], [0, 0, 2, 2]),
    ([[1, 2, 1, 0, 2]], [0, 1, 1, 2, 2]),
]
