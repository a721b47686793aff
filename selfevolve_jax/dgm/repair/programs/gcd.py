"""The greatest common divisor of two whole numbers."""


def gcd(a, b):
    while b != 0:
        rest = a % b
        a = b
        b = rest
    return a


CASES = [
    ([12, 8], 4),
    ([7, 0], 7),
    ([0, 5], 5),
    ([17, 13], 1),
    ([100, 75], 25),
    ([81, 27], 27),
    ([36, 60], 12),
    ([14, 49], 7),
    ([1, 9], 1),
    ([270, 192], 6),
]
