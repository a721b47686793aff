"""Moves items k places to the right; what falls off comes in on the left."""


def rotate(items, k):
    if len(items) == 0:
        return []
    k = k % len(items)
    split = len(items) - k
    return items[split:] + items[:split]


CASES = [
    ([[1, 2, 3, 4], 1], [4, 1, 2, 3]),
    ([[], 3], []),
    ([[1], 5], [1]),
    ([[1, 2, 3], 0], [1, 2, 3]),
    ([[1, 2, 3], 3], [1, 2, 3]),
    ([[1, 2, 3, 4, 5], 2], [4, 5, 1, 2, 3]),
    ([[1, 2, 3], -1], [2, 3, 1]),
    ([["a", "b"], 3], ["b", "a"]),
    ([[1, 2, 3, 4], 6], [3, 4, 1, 2]),
    ([[9, 8, 7], 4], [7, 9, 8]),
]
