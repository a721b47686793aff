"""The largest number below the largest, or None."""


def second_largest(numbers):
    first = None
    second = None
    for number in numbers:
        if first is None or number > first:
            second = first
            first = number
        elif number != first and (second is None or number > second):
            second = number
    return second


CASES = [
    ([[1, 2, 3]], 2),
    ([[]], None),
    ([[5]], None),
    ([[4, 4]], None),
    ([[3, 1, 3]], 1),
    ([[9, 7, 8]], 8),
    ([[2, 5, 5, 1]], 2),
    ([[-1, -3, -2]], -2),
    ([[10, 20]], 10),
    ([[6, 6, 2, 4]], 4),
]
