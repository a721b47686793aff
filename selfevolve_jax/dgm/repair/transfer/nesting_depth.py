"""How deep lists are nested; the mistake: the list itself is not counted."""


def nesting_depth(value):
    if not isinstance(value, list):
        return 0
    deepest = 0
    for item in value:
        deepest = max(deepest, nesting_depth(item))
    return deepest + 1


FAULTY = """
def nesting_depth(value):
    if not isinstance(value, list):
        return 0
    deepest = 0
    for item in value:
        deepest = max(deepest, nesting_depth(item))
    return deepest
"""

CASES = [
    ([[]], 1),
    ([5], 0),
    ([[1]], 1),
    ([[[1], 2]], 2),
    ([[[[]]]], 3),
    ([[1, [2, [3]]]], 3),
    (["x"], 0),
    ([[[], [[]]]], 3),
]
