"""Where an item stands last, or -1; the mistake: the first place is never looked at."""


def last_index(items, wanted):
    for i in range(len(items) - 1, -1, -1):
        if items[i] == wanted:
            return i
    return -1


FAULTY = """
def last_index(items, wanted):
    for i in range(len(items) - 1, 0, -1):
        if items[i] == wanted:
            return i
    return -1
"""

CASES = [
    ([[1, 2, 3], 1], 0),
    ([[4], 4], 0),
    ([[1, 2, 1], 1], 2),
    ([[], 5], -1),
    ([[7, 8], 7], 0),
    ([[3, 5, 6], 3], 0),
    ([[2, 2], 2], 1),
    ([[9, 1], 0], -1),
]
