"""The number nearest to a target; the mistake: distances below it count as negative."""


def nearest(numbers, target):
    best = numbers[0]
    for number in numbers:
        if abs(number - target) < abs(best - target):
            best = number
    return best


FAULTY = """
def nearest(numbers, target):
    best = numbers[0]
    for number in numbers:
        if number - target < best - target:
            best = number
    return best
"""

CASES = [
    ([[1, 5, 9], 6], 5),
    ([[4], 1], 4),
    ([[1, 10], 9], 10),
    ([[3, 2, 1], 3], 3),
    ([[7, 0], 1], 0),
    ([[2, 8, 20], 15], 20),
    ([[-5, 5], 4], 5),
    ([[10, 6, 1], 5], 6),
    ([[1, 2], 0], 1),
    ([[30, 40, 50], 44], 40),
]
