"""The sum of a tree of [value, left, right]; the mistake: the right branch counts twice."""


def tree_sum(tree):
    if tree is None:
        return 0
    return tree[0] + tree_sum(tree[1]) + tree_sum(tree[2])


FAULTY = """
def tree_sum(tree):
    if tree is None:
        return 0
    return tree[0] + tree_sum(tree[2]) + tree_sum(tree[2])
"""

CASES = [
    ([[1, None, None]], 1),
    ([[1, [2, None, None], None]], 3),
    ([None], 0),
    ([[1, None, [3, None, None]]], 4),
    ([[5, [3, None, None], [8, None, None]]], 16),
    ([[4, [2, [1, None, None], None], None]], 7),
    ([[0, None, None]], 0),
    ([[7, [1, None, None], [1, None, None]]], 9),
    ([[2, [9, None, [4, None, None]], None]], 15),
    ([[6, None, [5, None, [4, None, None]]]], 15),
]
