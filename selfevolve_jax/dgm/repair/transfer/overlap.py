"""How long two spans overlap; the mistake: spans apart give a negative length."""


def overlap(a, b):
    start = max(a[0], b[0])
    end = min(a[1], b[1])
    if end < start:
        return 0
    return end - start


FAULTY = """
def overlap(a, b):
    start = max(a[0], b[0])
    end = min(a[1], b[1])
    return end - start
"""

CASES = [
    ([[1, 5], [3, 8]], 2),
    ([[1, 2], [3, 4]], 0),
    ([[0, 1], [5, 9]], 0),
    ([[0, 10], [2, 3]], 1),
    ([[7, 9], [1, 2]], 0),
    ([[1, 2], [2, 3]], 0),
    ([[4, 6], [0, 3]], 0),
    ([[5, 6], [8, 9]], 0),
]
