"""The n-th row of Pascal's triangle, from row 0."""


def pascal_row(n):
    row = [1]
    for _ in range(n):
        following = [1]
        for i in range(len(row) - 1):
            following.append(row[i] + row[i + 1])
        following.append(1)
        row = following
    return row


CASES = [
    ([0], [1]),
    ([1], [1, 1]),
    ([2], [1, 2, 1]),
    ([3], [1, 3, 3, 1]),
    ([4], [1, 4, 6, 4, 1]),
    ([5], [1, 5, 10, 10, 5, 1]),
    ([6], [1, 6, 15, 20, 15, 6, 1]),
    ([8], [1, 8, 28, 56, 70, 56, 28, 8, 1]),
    ([10], [1, 10, 45, 120, 210, 252, 210, 120, 45, 10, 1]),
]
