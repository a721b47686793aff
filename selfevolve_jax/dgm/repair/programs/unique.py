"""Each item once, in order of first sight."""


def unique(items):
    seen = []
    for item in items:
        if item not in seen:
            seen.append(item)
    return seen


CASES = [
    ([[1, 2, 1]], [1, 2]),
    ([[]], []),
    ([[5]], [5]),
    ([[3, 3, 3]], [3]),
    ([[1, 2, 3]], [1, 2, 3]),
    ([["b", "a", "b"]], ["b", "a"]),
    ([[0, 1, 0, 1]], [0, 1]),
    ([[4, 2, 4, 2, 7]], [4, 2, 7]),
    ([[9, 9, 8]], [9, 8]),
]
