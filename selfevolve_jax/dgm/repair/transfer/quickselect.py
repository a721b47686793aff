"""The k-th smallest number; the mistake: k is not lessened for the upper part."""


def quickselect(numbers, k):
    pivot = numbers[0]
    below = [n for n in numbers if n < pivot]
    equal = [n for n in numbers if n == pivot]
    above = [n for n in numbers if n > pivot]
    if k < len(below):
        return quickselect(below, k)
    if k < len(below) + len(equal):
        return pivot
    return quickselect(above, k - len(below) - len(equal))


FAULTY = """
def quickselect(numbers, k):
    pivot = numbers[0]
    below = [n for n in numbers if n < pivot]
    equal = [n for n in numbers if n == pivot]
    above = [n for n in numbers if n > pivot]
    if k < len(below):
        return quickselect(below, k)
    if k < len(below) + len(equal):
        return pivot
    return quickselect(above, k - len(below))
"""

CASES = [
    ([[3, 1, 2], 2], 3),
    ([[5], 0], 5),
    ([[1, 2, 3], 1], 2),
    ([[9, 8, 7], 0], 7),
    ([[4, 4, 1], 2], 4),
    ([[2, 6, 4, 8], 3], 8),
    ([[1, 5, 3, 2, 4], 3], 4),
    ([[1, 5, 3, 2, 4], 4], 5),
    ([[7, 7, 7, 9], 3], 9),
    ([[10, 20, 30], 2], 30),
]
