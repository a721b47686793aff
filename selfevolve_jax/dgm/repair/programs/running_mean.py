"""The mean of each window of neighbouring numbers."""


def running_mean(numbers, width):
    means = []
    total = 0
    for i in range(len(numbers)):
        total += numbers[i]
        if i >= width:
            total -= numbers[i - width]
        if i >= width - 1:
            means.append(total / width)
    return means


CASES = [
    ([[1, 2, 3, 4], 2], [1.5, 2.5, 3.5]),
    ([[], 3], []),
    ([[5], 1], [5.0]),
    ([[2, 4, 6], 3], [4.0]),
    ([[1, 2], 3], []),
    ([[10, 20, 30, 40, 50], 4], [25.0, 35.0]),
    ([[4, 0, 4, 0], 2], [2.0, 2.0, 2.0]),
    ([[1, 3, 5, 7], 1], [1.0, 3.0, 5.0, 7.0]),
    ([[8, 2, 5, 9, 1], 2], [5.0, 3.5, 7.0, 5.0]),
    ([[6, 6, 6, 0], 3], [6.0, 4.0]),
]
