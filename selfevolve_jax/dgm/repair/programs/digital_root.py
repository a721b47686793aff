"""Sums the digits until one digit is left."""


def digital_root(n):
    while n > 9:
        total = 0
        while n > 0:
            total += n % 10
            n = n // 10
        n = total
    return n


CASES = [
    ([5], 5),
    ([0], 0),
    ([38], 2),
    ([9], 9),
    ([10], 1),
    ([999], 9),
    ([12345], 6),
    ([493193], 2),
    ([99], 9),
    ([1000], 1),
    ([77], 5),
]
