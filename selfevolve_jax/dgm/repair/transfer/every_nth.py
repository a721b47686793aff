"""Each n-th item, the n-th first; the mistake: it starts one too late."""


def every_nth(items, n):
    return items[n - 1 :: n]


FAULTY = """
def every_nth(items, n):
    return items[n :: n]
"""

CASES = [
    ([[1, 2, 3, 4], 2], [2, 4]),
    ([[1, 2, 3], 1], [1, 2, 3]),
    ([[], 2], []),
    ([[1, 2, 3, 4, 5, 6], 3], [3, 6]),
    ([["a", "b"], 2], ["b"]),
    ([[9, 8, 7], 3], [7]),
    ([[5, 6], 1], [5, 6]),
    ([[0, 1, 2, 3], 4], [3]),
]
