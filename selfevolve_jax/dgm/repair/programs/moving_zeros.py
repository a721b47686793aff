"""The zeros go to the end, the others keep their order."""


def moving_zeros(numbers):
    result = list(numbers)
    place = 0
    for i in range(len(result)):
        if result[i] != 0:
            result[place] = result[i]
            place += 1
    for i in range(place, len(result)):
        result[i] = 0
    return result


CASES = [
    ([[0, 1, 0, 2]], [1, 2, 0, 0]),
    ([[]], []),
    ([[0]], [0]),
    ([[1, 2]], [1, 2]),
    ([[0, 0, 3]], [3, 0, 0]),
    ([[4, 0, 5, 0, 6]], [4, 5, 6, 0, 0]),
    ([[7, 0]], [7, 0]),
    ([[0, 0]], [0, 0]),
    ([[1, 0, 0, 2, 3]], [1, 2, 3, 0, 0]),
]
