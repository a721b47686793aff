"""The largest number; the mistake: it starts from 0, so negative ones never win."""


def largest(numbers):
    best = numbers[0]
    for number in numbers:
        if number > best:
            best = number
    return best


FAULTY = """
def largest(numbers):
    best = 0
    for number in numbers:
        if number > best:
            best = number
    return best
"""

CASES = [
    ([[-3, -1]], -1),
    ([[-5]], -5),
    ([[1, 2]], 2),
    ([[0]], 0),
    ([[-7, -9, -8]], -7),
    ([[-2, -2]], -2),
    ([[4, -4]], 4),
    ([[3, 9, 6]], 9),
]
