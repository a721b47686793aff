"""Money with yearly interest in whole units; the mistake: interest on the first sum alone."""


def balance_after(amount, percent, years):
    balance = amount
    for _ in range(years):
        balance += balance * percent // 100
    return balance


FAULTY = """
def balance_after(amount, percent, years):
    balance = amount
    for _ in range(years):
        balance += amount * percent // 100
    return balance
"""

CASES = [
    ([1000, 10, 2], 1210),
    ([500, 20, 3], 864),
    ([100, 5, 1], 105),
    ([100, 50, 0], 100),
    ([1000, 5, 4], 1214),
    ([2000, 10, 3], 2662),
    ([300, 0, 5], 300),
    ([100, 100, 5], 3200),
]
