"""The fewest coins that make an amount, or -1."""


def min_coins(amount, coins):
    fewest = [0] + [amount + 1] * amount
    for total in range(1, amount + 1):
        for coin in coins:
            if coin <= total:
                fewest[total] = min(fewest[total], fewest[total - coin] + 1)
    if fewest[amount] > amount:
        return -1
    return fewest[amount]


CASES = [
    ([11, [1, 2, 5]], 3),
    ([0, [1]], 0),
    ([3, [2]], -1),
    ([10, [1, 5, 10]], 1),
    ([4, [1, 3]], 2),
    ([7, [3, 5]], -1),
    ([8, [3, 5]], 2),
    ([6, [1, 3, 4]], 2),
    ([9, [4, 6]], -1),
    ([1, [1]], 1),
    ([5, [5]], 1),
]
