"""How long the longest strictly rising choice of numbers is."""


def longest_increasing(numbers):
    lengths = []
    for i in range(len(numbers)):
        best = 1
        for j in range(i):
            if numbers[j] < numbers[i] and lengths[j] + 1 > best:
                best = lengths[j] + 1
        lengths.append(best)
    return max(lengths) if lengths else 0


CASES = [
    ([[1, 3, 2, 4]], 3),
    ([[]], 0),
    ([[5]], 1),
    ([[3, 2, 1]], 1),
    ([[1, 2, 3]], 3),
    ([[2, 2, 2]], 1),
    ([[10, 9, 2, 5, 3, 7, 101, 18]], 4),
    ([[4, 1, 2]], 2),
    ([[0, 8, 4, 12, 2, 10]], 3),
    ([[1, 1, 2]], 2),
]
