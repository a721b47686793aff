"""In how many ways coins make an amount."""


def coin_ways(amount, coins):
    ways = [0] * (amount + 1)
    ways[0] = 1
    for coin in coins:
        for total in range(coin, amount + 1):
            ways[total] += ways[total - coin]
    return ways[amount]


CASES = [
    ([5, [1, 2, 5]], 4),
    ([0, [1]], 1),
    ([3, [2]], 0),
    ([10, [1, 5, 10]], 4),
    ([4, [1, 2, 3]], 4),
    ([7, [3, 5]], 0),
    ([8, [3, 5]], 1),
    ([12, [1, 2, 5, 10]], 15),
    ([6, [2, 3]], 2),
    ([1, [1]], 1),
]
