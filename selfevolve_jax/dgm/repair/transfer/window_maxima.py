"""The largest of each window; the mistake: one window too few."""


def window_maxima(numbers, width):
    maxima = []
    for start in range(len(numbers) - width + 1):
        maxima.append(max(numbers[start : start + width]))
    return maxima


FAULTY = """
def window_maxima(numbers, width):
    maxima = []
    for start in range(len(numbers) - width):
        maxima.append(max(numbers[start : start + width]))
    return maxima
"""

CASES = [
    ([[1, 2, 3], 2], [2, 3]),
    ([[5], 1], [5]),
    ([[4, 1], 2], [4]),
    ([[9, 8, 7, 6], 3], [9, 8]),
    ([[1], 2], []),
    ([[2, 7, 1, 8], 1], [2, 7, 1, 8]),
    ([[3, 3], 1], [3, 3]),
    ([[0, 5, 0, 5, 0], 4], [5, 5]),
    ([[6, 2, 4], 3], [6]),
]
