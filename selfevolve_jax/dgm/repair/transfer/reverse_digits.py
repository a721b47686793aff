"""A number read backwards; the mistake: // and % are mixed up."""


def reverse_digits(n):
    result = 0
    while n > 0:
        result = result * 10 + n % 10
        n = n // 10
    return result


FAULTY = """
def reverse_digits(n):
    result = 0
    while n > 0:
        result = result * 10 + n // 10
        n = n // 10
    return result
"""

CASES = [
    ([12], 21),
    ([7], 7),
    ([0], 0),
    ([100], 1),
    ([345], 543),
    ([9001], 1009),
    ([81], 18),
    ([55], 55),
]
