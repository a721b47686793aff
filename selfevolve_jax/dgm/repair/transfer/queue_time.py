"""When the last customer is done at n tills; the mistake: they join the fullest till."""


def queue_time(customers, n):
    tills = [0] * n
    for time in customers:
        i = tills.index(min(tills))
        tills[i] += time
    return max(tills)


FAULTY = """
def queue_time(customers, n):
    tills = [0] * n
    for time in customers:
        i = tills.index(max(tills))
        tills[i] += time
    return max(tills)
"""

CASES = [
    ([[5, 3, 4], 1], 12),
    ([[10, 2, 3, 3], 2], 10),
    ([[], 1], 0),
    ([[2, 3, 10], 2], 12),
    ([[1, 1, 1, 1], 4], 1),
    ([[5, 5], 2], 5),
    ([[7, 2, 2], 2], 7),
    ([[3, 3, 3], 3], 3),
    ([[4], 3], 4),
    ([[6, 1, 2], 3], 6),
]
