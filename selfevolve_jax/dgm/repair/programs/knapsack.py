"""The largest value of things whose weight stays within the capacity."""


def knapsack(weights, values, capacity):
    best = [0] * (capacity + 1)
    for i in range(len(weights)):
        for room in range(capacity, weights[i] - 1, -1):
            best[room] = max(best[room], best[room - weights[i]] + values[i])
    return best[capacity]


CASES = [
    ([[1, 2, 3], [6, 10, 12], 5], 22),
    ([[], [], 4], 0),
    ([[2], [3], 1], 0),
    ([[2], [3], 2], 3),
    ([[1, 1], [2, 3], 1], 3),
    ([[3, 4, 5], [4, 5, 6], 7], 9),
    ([[5, 4, 6, 3], [10, 40, 30, 50], 10], 90),
    ([[2, 2, 3], [3, 3, 5], 4], 6),
    ([[1], [7], 3], 7),
    ([[4, 2], [9, 5], 5], 9),
]
