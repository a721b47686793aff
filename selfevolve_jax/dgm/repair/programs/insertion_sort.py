"""Sorts by putting each item into its place among those before it."""


def insertion_sort(items):
    result = list(items)
    for i in range(1, len(result)):
        item = result[i]
        j = i - 1
        while j >= 0 and result[j] > item:
            result[j + 1] = result[j]
            j = j - 1
        result[j + 1] = item
    return result


CASES = [
    ([[3, 1, 2]], [1, 2, 3]),
    ([[]], []),
    ([[5]], [5]),
    ([[2, 1]], [1, 2]),
    ([[4, 3, 2, 1]], [1, 2, 3, 4]),
    ([[1, 2, 3]], [1, 2, 3]),
    ([[9, 7, 7, 8]], [7, 7, 8, 9]),
    ([[0, -4, 6, -4]], [-4, -4, 0, 6]),
    ([[10, 3, 8, 1, 5]], [1, 3, 5, 8, 10]),
    ([[2, 2, 1]], [1, 2, 2]),
]
