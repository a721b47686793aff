"""Intervals that overlap or touch become one."""


def merge_intervals(intervals):
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


CASES = [
    ([[[1, 3], [2, 4]]], [[1, 4]]),
    ([[]], []),
    ([[[1, 2]]], [[1, 2]]),
    ([[[1, 2], [3, 4]]], [[1, 2], [3, 4]]),
    ([[[1, 2], [2, 3]]], [[1, 3]]),
    ([[[5, 6], [1, 9]]], [[1, 9]]),
    ([[[1, 4], [0, 2], [3, 5]]], [[0, 5]]),
    ([[[8, 10], [1, 3], [2, 6], [15, 18]]], [[1, 6], [8, 10], [15, 18]]),
    ([[[1, 10], [2, 3], [4, 5]]], [[1, 10]]),
    ([[[0, 0], [0, 1]]], [[0, 1]]),
]
