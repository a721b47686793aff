"""How many bits of n are 1."""


def bit_count(n):
    count = 0
    while n > 0:
        count += n % 2
        n = n // 2
    return count


CASES = [
    ([0], 0),
    ([1], 1),
    ([2], 1),
    ([3], 2),
    ([8], 1),
    ([255], 8),
    ([1023], 10),
    ([6], 2),
    ([21], 3),
    ([100], 3),
]
