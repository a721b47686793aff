"""The numbers of a matrix read round and round from the outside."""


def spiral(matrix):
    result = []
    rows = [list(row) for row in matrix]
    while rows:
        result.extend(rows.pop(0))
        for row in rows:
            if row:
                result.append(row.pop())
        if rows:
            result.extend(reversed(rows.pop()))
        for row in reversed(rows):
            if row:
                result.append(row.pop(0))
    return result


CASES = [
    ([[[1, 2], [3, 4]]], [1, 2, 4, 3]),
    ([[]], []),
    ([[[1]]], [1]),
    ([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], [1, 2, 3, 6, 9, 8, 7, 4, 5]),
    ([[[1, 2, 3]]], [1, 2, 3]),
    ([[[1], [2], [3]]], [1, 2, 3]),
    ([[[1, 2], [3, 4], [5, 6]]], [1, 2, 4, 6, 5, 3]),
    ([[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]], [1, 2, 3, 4, 8, 12, 11, 10, 9, 5, 6, 7]),
    ([[[1, 2, 3], [4, 5, 6]]], [1, 2, 3, 6, 5, 4]),
]
