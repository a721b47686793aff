"""Numbers multiplied, 1 of none; the mistake: it starts from nothing."""


def product(numbers):
    result = 1
    for number in numbers:
        result *= number
    return result


FAULTY = """
def product(numbers):
    result = 0
    for number in numbers:
        result *= number
    return result
"""

CASES = [
    ([[2, 3]], 6),
    ([[5]], 5),
    ([[]], 1),
    ([[4, -1]], -4),
    ([[1, 1]], 1),
    ([[0, 7]], 0),
    ([[2, 2, 2]], 8),
    ([[10, 3]], 30),
]
