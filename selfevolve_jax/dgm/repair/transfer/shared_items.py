"""What two lists share, as often as both have it; the mistake: one item is matched twice."""


def shared_items(a, b):
    left = list(b)
    shared = []
    for item in a:
        if item in left:
            shared.append(item)
            left.remove(item)
    return shared


FAULTY = """
def shared_items(a, b):
    left = list(b)
    shared = []
    for item in a:
        if item in left:
            shared.append(item)
    return shared
"""

CASES = [
    ([[1, 1, 2], [1, 2]], [1, 2]),
    ([[], [1]], []),
    ([[1, 2], [2, 1]], [1, 2]),
    ([[3, 3, 3], [3, 3]], [3, 3]),
    ([[4, 4], [4]], [4]),
    ([[5], [6]], []),
    ([[1, 1], [1, 1]], [1, 1]),
    ([[7, 8, 7], [7, 8]], [7, 8]),
    ([[2, 2, 2, 2], [2]], [2]),
    ([["a", "a"], ["a", "b"]], ["a"]),
]
