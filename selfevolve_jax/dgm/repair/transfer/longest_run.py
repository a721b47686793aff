"""The length of the longest run of equal items; the mistake: the last run is forgotten."""


def longest_run(items):
    best = 0
    length = 0
    for i in range(len(items)):
        if i > 0 and items[i] == items[i - 1]:
            length += 1
        else:
            best = max(best, length)
            length = 1
    return max(best, length)


FAULTY = """
def longest_run(items):
    best = 0
    length = 0
    for i in range(len(items)):
        if i > 0 and items[i] == items[i - 1]:
            length += 1
        else:
            best = max(best, length)
            length = 1
    return best
"""

CASES = [
    ([[1, 1, 2]], 2),
    ([[1, 2, 2]], 2),
    ([[]], 0),
    ([[5]], 1),
    ([[3, 3, 3]], 3),
    ([[1, 1, 0]], 2),
    ([[4, 4, 1, 1, 1]], 3),
    ([[7, 8]], 1),
    ([[2, 2, 2, 9]], 3),
    ([[0, 6, 6, 6, 6]], 4),
]
