"""base to the power exponent, modulo modulus, by squaring."""


def power_mod(base, exponent, modulus):
    result = 1
    base = base % modulus
    while exponent > 0:
        if exponent % 2 == 1:
            result = result * base % modulus
        base = base * base % modulus
        exponent = exponent // 2
    return result


CASES = [
    ([2, 10, 1000], 24),
    ([3, 0, 7], 1),
    ([5, 3, 13], 8),
    ([7, 7, 10], 3),
    ([2, 5, 33], 32),
    ([10, 4, 6], 4),
    ([4, 13, 497], 445),
    ([1, 99, 5], 1),
    ([9, 2, 80], 1),
    ([6, 5, 100], 76),
]
