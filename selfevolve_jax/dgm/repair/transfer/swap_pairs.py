"""Neighbours exchanged two by two; the mistake: one is overwritten before it is kept."""


def swap_pairs(items):
    result = list(items)
    for i in range(0, len(result) - 1, 2):
        held = result[i]
        result[i] = result[i + 1]
        result[i + 1] = held
    return result


FAULTY = """
def swap_pairs(items):
    result = list(items)
    for i in range(0, len(result) - 1, 2):
        result[i] = result[i + 1]
        held = result[i]
        result[i + 1] = held
    return result
"""

CASES = [
    ([[1, 2]], [2, 1]),
    ([[3, 4, 5]], [4, 3, 5]),
    ([[]], []),
    ([[6]], [6]),
    ([[1, 2, 3, 4]], [2, 1, 4, 3]),
    ([["a", "b"]], ["b", "a"]),
    ([[7, 8, 9, 10]], [8, 7, 10, 9]),
    ([[0, 1, 2]], [1, 0, 2]),
]
