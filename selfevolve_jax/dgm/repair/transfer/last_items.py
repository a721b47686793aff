"""The last n items; the mistake: items[-0:] is all of them."""


def last_items(items, n):
    return items[max(len(items) - n, 0) :]


FAULTY = """
def last_items(items, n):
    return items[-n:]
"""

CASES = [
    ([[1, 2, 3], 0], []),
    ([[1, 2], 0], []),
    ([[1, 2, 3], 2], [2, 3]),
    ([[], 1], []),
    ([[5], 1], [5]),
    ([[1, 2, 3], 5], [1, 2, 3]),
    ([[7, 8], 1], [8]),
    ([["a"], 0], []),
    ([[9, 9], 0], []),
]
