"""The digits of n in a base from 2 to 16."""


def to_base(n, base):
    digits = "0123456789ABCDEF"
    if n == 0:
        return "0"
    result = ""
    while n > 0:
        result = digits[n % base] + result
        n = n // base
    return result


CASES = [
    ([10, 2], "1010"),
    ([0, 2], "0"),
    ([255, 16], "FF"),
    ([8, 8], "10"),
    ([7, 10], "7"),
    ([31, 16], "1F"),
    ([100, 7], "202"),
    ([1, 2], "1"),
    ([64, 4], "1000"),
    ([4095, 16], "FFF"),
    ([19, 3], "201"),
]
