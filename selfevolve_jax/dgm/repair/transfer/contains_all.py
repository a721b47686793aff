"""Whether all wanted items are there; the mistake: it answers after the first."""


def contains_all(items, wanted):
    missing = 0
    for item in wanted:
        if item not in items:
            missing += 1
    return missing == 0


FAULTY = """
def contains_all(items, wanted):
    missing = 0
    for item in wanted:
        if item not in items:
            missing += 1
        return missing == 0
    return True
"""

CASES = [
    ([[1, 2, 3], [1, 5]], False),
    ([[1], [1, 2]], False),
    ([[1, 2], [2, 1]], True),
    ([[], []], True),
    ([[4, 5], [4, 6]], False),
    ([[7], [7, 8]], False),
    ([[1, 2], []], True),
    ([[2], [3]], False),
]
