"""By the first row; the mistake: the signs do not alternate."""


def determinant(matrix):
    if len(matrix) == 1:
        return matrix[0][0]
    total = 0
    for column in range(len(matrix)):
        minor = [row[:column] + row[column + 1 :] for row in matrix[1:]]
        sign = 1 if column % 2 == 0 else -1
        total += sign * matrix[0][column] * determinant(minor)
    return total


FAULTY = """
def determinant(matrix):
    if len(matrix) == 1:
        return matrix[0][0]
    total = 0
    for column in range(len(matrix)):
        minor = [row[:column] + row[column + 1 :] for row in matrix[1:]]
        total += matrix[0][column] * determinant(minor)
    return total
"""

CASES = [
    ([[[1, 2], [3, 4]]], -2),
    ([[[5]]], 5),
    ([[[2, 0], [0, 3]]], 6),
    ([[[1, 1], [1, 1]]], 0),
    ([[[2, 1, 0], [1, 3, 1], [0, 1, 4]]], 18),
    ([[[0, 1], [1, 0]]], -1),
    ([[[1, 2, 3], [4, 5, 6], [7, 8, 10]]], -3),
    ([[[6, 1], [4, -2]]], -16),
]
