"""Coins for an amount, largest first; the mistake: each coin is given once at most."""


def change_due(amount, coins):
    given = []
    for coin in sorted(coins, reverse=True):
        while amount >= coin:
            given.append(coin)
            amount -= coin
    return given


FAULTY = """
def change_due(amount, coins):
    given = []
    for coin in sorted(coins, reverse=True):
        if amount >= coin:
            given.append(coin)
            amount -= coin
    return given
"""

CASES = [
    ([8, [5, 2, 1]], [5, 2, 1]),
    ([9, [5, 2, 1]], [5, 2, 2]),
    ([10, [5]], [5, 5]),
    ([0, [1]], []),
    ([4, [1, 2]], [2, 2]),
    ([30, [10, 20]], [20, 10]),
    ([7, [5, 2]], [5, 2]),
    ([60, [20, 50, 10]], [50, 10]),
    ([3, [1]], [1, 1, 1]),
    ([41, [20, 1]], [20, 20, 1]),
]
