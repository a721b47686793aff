"""Rows become columns."""


def transpose(matrix):
    if not matrix:
        return []
    result = []
    for column in range(len(matrix[0])):
        row = []
        for line in matrix:
            row.append(line[column])
        result.append(row)
    return result


CASES = [
    ([[[1, 2], [3, 4]]], [[1, 3], [2, 4]]),
    ([[]], []),
    ([[[1, 2, 3]]], [[1], [2], [3]]),
    ([[[1], [2]]], [[1, 2]]),
    ([[[5]]], [[5]]),
    ([[[1, 2, 3], [4, 5, 6]]], [[1, 4], [2, 5], [3, 6]]),
    ([[["a", "b"], ["c", "d"], ["e", "f"]]], [["a", "c", "e"], ["b", "d", "f"]]),
    ([[[0, 1], [1, 0]]], [[0, 1], [1, 0]]),
    ([[[7, 8, 9], [1, 2, 3], [4, 5, 6]]], [[7, 1, 4], [8, 2, 5], [9, 3, 6]]),
]
