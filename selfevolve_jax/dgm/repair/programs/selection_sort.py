"""Sorts, largest first, by choosing the largest of what is left."""


def selection_sort(items):
    result = list(items)
    for start in range(len(result)):
        best = start
        for i in range(start + 1, len(result)):
            if result[i] > result[best]:
                best = i
        result[start], result[best] = result[best], result[start]
    return result


CASES = [
    ([[3, 1, 2]], [3, 2, 1]),
    ([[]], []),
    ([[5]], [5]),
    ([[1, 2]], [2, 1]),
    ([[4, 3, 2, 1]], [4, 3, 2, 1]),
    ([[1, 2, 3]], [3, 2, 1]),
    ([[9, 7, 7, 8]], [9, 8, 7, 7]),
    ([[0, -4, 6, -4]], [6, 0, -4, -4]),
    ([[10, 3, 8, 1, 5]], [10, 8, 5, 3, 1]),
    ([[2, 2, 1, 6]], [6, 2, 2, 1]),
]
