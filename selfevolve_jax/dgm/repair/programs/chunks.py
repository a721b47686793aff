"""The items in groups of one size, the last perhaps shorter."""


def chunks(items, size):
    result = []
    start = 0
    while start < len(items):
        result.append(items[start : start + size])
        start += size
    return result


CASES = [
    ([[1, 2, 3, 4], 2], [[1, 2], [3, 4]]),
    ([[], 3], []),
    ([[1], 1], [[1]]),
    ([[1, 2, 3], 2], [[1, 2], [3]]),
    ([[1, 2, 3], 5], [[1, 2, 3]]),
    ([["a", "b", "c", "d", "e"], 3], [["a", "b", "c"], ["d", "e"]]),
    ([[1, 2, 3, 4, 5, 6], 3], [[1, 2, 3], [4, 5, 6]]),
    ([[0, 0], 1], [[0], [0]]),
    ([[7, 8, 9, 10, 11], 4], [[7, 8, 9, 10], [11]]),
]
