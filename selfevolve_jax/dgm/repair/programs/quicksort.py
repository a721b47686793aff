"""Sorts by the first item as the pivot."""


def quicksort(items):
    if len(items) <= 1:
        return items
    pivot = items[0]
    small = [item for item in items[1:] if item < pivot]
    large = [item for item in items[1:] if item >= pivot]
    return [*quicksort(small), pivot, *quicksort(large)]


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
