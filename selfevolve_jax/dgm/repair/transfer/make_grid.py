"""A grid of zeros with some cells set; the mistake: all rows are one list."""


def make_grid(height, width, cells):
    grid = [[0] * width for _ in range(height)]
    for row, column in cells:
        grid[row][column] = 1
    return grid


FAULTY = """
def make_grid(height, width, cells):
    grid = [[0] * width] * height
    for row, column in cells:
        grid[row][column] = 1
    return grid
"""

CASES = [
    ([2, 2, [[0, 0]]], [[1, 0], [0, 0]]),
    ([1, 1, []], [[0]]),
    ([2, 3, [[1, 2]]], [[0, 0, 0], [0, 0, 1]]),
    ([3, 1, [[0, 0], [2, 0]]], [[1], [0], [1]]),
    ([1, 3, [[0, 1]]], [[0, 1, 0]]),
    ([2, 2, [[0, 1], [1, 0]]], [[0, 1], [1, 0]]),
    ([2, 1, [[1, 0]]], [[0], [1]]),
    ([3, 3, [[1, 1]]], [[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    ([2, 2, []], [[0, 0], [0, 0]]),
]
