"""Where target stands in a sorted list, or -1."""


def binary_search(items, target):
    low = 0
    high = len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == target:
            return middle
        if items[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return -1


CASES = [
    ([[1, 3, 5, 7, 9], 7], 3),
    ([[1, 3, 5, 7, 9], 1], 0),
    ([[1, 3, 5, 7, 9], 9], 4),
    ([[1, 3, 5, 7, 9], 4], -1),
    ([[], 3], -1),
    ([[6], 6], 0),
    ([[6], 2], -1),
    ([[2, 4], 4], 1),
    ([[2, 4], 5], -1),
    ([[1, 2, 3, 4, 5, 6], 5], 4),
    ([[1, 2, 3, 4, 5, 6], 0], -1),
    ([[10, 20, 30], 20], 1),
]
