"""The middle number, or the mean of the middle two."""


def median(numbers):
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


CASES = [
    ([[3, 1, 2]], 2),
    ([[4, 1, 3, 2]], 2.5),
    ([[5]], 5),
    ([[7, 9]], 8.0),
    ([[10, 2, 38, 23, 38, 23, 21]], 23),
    ([[1, 1, 2, 9]], 1.5),
    ([[-5, 0, 5]], 0),
    ([[6, 2, 4, 8, 10, 12]], 7.0),
    ([[100, 1, 1]], 1),
    ([[0, 4]], 2.0),
]
