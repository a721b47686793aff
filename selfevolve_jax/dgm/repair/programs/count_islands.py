"""How many groups of 1 there are that touch along their sides."""


def count_islands(grid):
    cells = [list(row) for row in grid]
    count = 0
    for r in range(len(cells)):
        for c in range(len(cells[r])):
            if cells[r][c] == 1:
                count += 1
                sink(cells, r, c)
    return count


def sink(cells, r, c):
    if r < 0 or c < 0 or r >= len(cells) or c >= len(cells[r]):
        return
    if cells[r][c] == 1:
        cells[r][c] = 0
        sink(cells, r + 1, c)
        sink(cells, r - 1, c)
        sink(cells, r, c + 1)
        sink(cells, r, c - 1)


CASES = [
    ([[[1, 0], [0, 1]]], 2),
    ([[]], 0),
    ([[[0]]], 0),
    ([[[1, 1], [1, 1]]], 1),
    ([[[1, 0, 1]]], 2),
    ([[[1, 1, 0], [0, 0, 0], [0, 1, 1]]], 2),
    ([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], 1),
    ([[[1], [0], [1]]], 2),
    ([[[1, 0, 1], [1, 0, 1], [1, 1, 1]]], 1),
    ([[[0, 0, 1], [0, 1, 0], [1, 0, 0]]], 3),
]
