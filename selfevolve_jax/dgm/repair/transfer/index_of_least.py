"""Where the smallest number stands; the mistake: all are compared with the first."""


def index_of_least(numbers):
    best = 0
    for i in range(len(numbers)):
        if numbers[i] < numbers[best]:
            best = i
    return best


FAULTY = """
def index_of_least(numbers):
    best = 0
    for i in range(len(numbers)):
        if numbers[i] < numbers[0]:
            best = i
    return best
"""

CASES = [
    ([[5, 1, 3]], 1),
    ([[9, 2, 4, 6]], 1),
    ([[1]], 0),
    ([[1, 2]], 0),
    ([[7, 3, 5]], 1),
    ([[8, 6, 7, 7]], 1),
    ([[2, 1]], 1),
    ([[4, 0, 3, 2]], 1),
]
