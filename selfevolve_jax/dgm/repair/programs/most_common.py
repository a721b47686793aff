"""The number that is there most often; the smallest of several; None of nothing."""


def most_common(numbers):
    counts = {}
    for number in numbers:
        counts[number] = counts.get(number, 0) + 1
    best = None
    for number in sorted(counts):
        if best is None or counts[number] > counts[best]:
            best = number
    return best


CASES = [
    ([[1, 2, 2]], 2),
    ([[]], None),
    ([[5]], 5),
    ([[3, 3, 1, 1]], 1),
    ([[4, 4, 2, 2, 2]], 2),
    ([[7, 8, 9]], 7),
    ([[0, 0, -1]], 0),
    ([[6, 5, 6, 5, 6]], 6),
    ([[2, 9, 9, 2, 1]], 2),
    ([[1, 1, 3, 3, 3, 1]], 1),
]
