"""The mean, 0 of nothing; the mistake: nobody thought of the empty list."""


def average(numbers):
    if not numbers:
        return 0
    total = 0
    for number in numbers:
        total += number
    return total / len(numbers)


FAULTY = """
def average(numbers):
    total = 0
    for number in numbers:
        total += number
    return total / len(numbers)
"""

CASES = [
    ([[]], 0),
    ([[]], 0),
    ([[1, 2, 3]], 2.0),
    ([[5]], 5.0),
    ([[2, 4]], 3.0),
    ([[-1, 1]], 0.0),
    ([[10, 20, 60]], 30.0),
    ([[0, 0]], 0.0),
]
