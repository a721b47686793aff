"""Where to insert a number before its equals; the mistake: it lands behind them."""


def insert_place(numbers, number):
    low = 0
    high = len(numbers)
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < number:
            low = middle + 1
        else:
            high = middle
    return low


FAULTY = """
def insert_place(numbers, number):
    low = 0
    high = len(numbers)
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] <= number:
            low = middle + 1
        else:
            high = middle
    return low
"""

CASES = [
    ([[1, 3, 3, 5], 3], 1),
    ([[], 1], 0),
    ([[2, 2, 2], 2], 0),
    ([[1, 2], 3], 2),
    ([[1, 2, 3], 2], 1),
    ([[4, 6], 5], 1),
    ([[7], 7], 0),
    ([[1, 4, 4, 4, 9], 4], 1),
    ([[0, 1], 0], 0),
    ([[5, 6], 1], 0),
]
