"""Sorts by exchanging neighbours that stand the wrong way round."""


def bubble_sort(items):
    result = list(items)
    last = len(result) - 1
    while last > 0:
        for i in range(last):
            if result[i] > result[i + 1]:
                held = result[i]
                result[i] = result[i + 1]
                result[i + 1] = held
        last = last - 1
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
