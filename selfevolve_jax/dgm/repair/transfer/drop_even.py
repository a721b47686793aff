"""The odd numbers; the mistake: the list is changed while it is walked."""


def drop_even(numbers):
    for number in list(numbers):
        if number % 2 == 0:
            numbers.remove(number)
    return numbers


FAULTY = """
def drop_even(numbers):
    for number in numbers:
        if number % 2 == 0:
            numbers.remove(number)
    return numbers
"""

CASES = [
    ([[2, 4, 5]], [5]),
    ([[2, 2, 3]], [3]),
    ([[]], []),
    ([[1, 3]], [1, 3]),
    ([[2, 4, 6, 8]], []),
    ([[6, 8]], []),
    ([[1, 2, 3]], [1, 3]),
    ([[4, 4, 4]], []),
    ([[7, 2, 2]], [7]),
    ([[0, 0, 1, 0]], [1]),
]
