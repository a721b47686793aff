"""The places of the first two numbers that add up to the target, or []."""


def two_sum(numbers, target):
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            if numbers[i] + numbers[j] == target:
                return [i, j]
    return []


CASES = [
    ([[2, 7, 11], 9], [0, 1]),
    ([[3, 3], 6], [0, 1]),
    ([[1, 2, 3], 7], []),
    ([[], 0], []),
    ([[5], 10], []),
    ([[1, 4, 6, 9], 10], [0, 3]),
    ([[0, -2, 5, 2], 0], [1, 3]),
    ([[3, 1, 2], 3], [1, 2]),
    ([[8, 2, 7, 1], 15], [0, 2]),
    ([[4, 4, 4], 8], [0, 1]),
    ([[1, 5, 7], 2], []),
]
