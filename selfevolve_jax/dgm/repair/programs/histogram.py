"""How many values fall into each of n bins from low to high, the rest left out."""


def histogram(values, low, high, n):
    counts = [0] * n
    width = (high - low) / n
    for value in values:
        if low <= value < high:
            index = int((value - low) / width)
            counts[index] += 1
    return counts


CASES = [
    ([[1, 2, 3], 0, 4, 4], [0, 1, 1, 1]),
    ([[], 0, 1, 2], [0, 0]),
    ([[0, 5, 9, 10], 0, 10, 2], [1, 2]),
    ([[3, 3, 3], 0, 6, 3], [0, 3, 0]),
    ([[-1, 11], 0, 10, 5], [0, 0, 0, 0, 0]),
    ([[5, 15, 25], 0, 30, 3], [1, 1, 1]),
    ([[10, 12, 14], 10, 16, 2], [2, 1]),
    ([[1, 4, 7], 1, 7, 3], [1, 1, 0]),
    ([[0, 1, 2, 3, 4, 5], 0, 6, 3], [2, 2, 2]),
]
