"""The sum from the upper right to the lower left; the mistake: one column too far."""


def other_diagonal(matrix):
    total = 0
    for i in range(len(matrix)):
        total += matrix[i][len(matrix) - i - 1]
    return total


FAULTY = """
def other_diagonal(matrix):
    total = 0
    for i in range(len(matrix)):
        total += matrix[i][len(matrix) - i]
    return total
"""

CASES = [
    ([[[1, 2], [3, 4]]], 5),
    ([[[5]]], 5),
    ([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], 15),
    ([[[0, 1], [1, 0]]], 2),
    ([[[2, 0], [0, 2]]], 0),
    ([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]], 1),
    ([[[9, 8], [7, 6]]], 15),
    ([[[-1]]], -1),
]
