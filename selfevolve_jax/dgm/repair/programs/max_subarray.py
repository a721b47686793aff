"""The largest sum of neighbouring numbers, 0 where none is positive."""


def max_subarray(numbers):
    best = 0
    here = 0
    for number in numbers:
        here = max(here + number, 0)
        best = max(best, here)
    return best


CASES = [
    ([[1, -2, 3, 4]], 7),
    ([[]], 0),
    ([[-1, -5]], 0),
    ([[5]], 5),
    ([[2, -1, 2]], 3),
    ([[4, -6, 5]], 5),
    ([[1, 2, 3]], 6),
    ([[-2, 6, -1, 4, -9]], 9),
    ([[3, -4, 2, 1]], 3),
    ([[8, -7, 8, -20, 3]], 9),
]
