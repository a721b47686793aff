"""Whether n is a prime; the mistake: the root itself is never tried."""


def is_prime(n):
    if n < 2:
        return False
    divisor = 2
    while divisor * divisor <= n:
        if n % divisor == 0:
            return False
        divisor += 1
    return True


FAULTY = """
def is_prime(n):
    if n < 2:
        return False
    divisor = 2
    while divisor * divisor < n:
        if n % divisor == 0:
            return False
        divisor += 1
    return True
"""

CASES = [
    ([9], False),
    ([4], False),
    ([2], True),
    ([1], False),
    ([25], False),
    ([49], False),
    ([7], True),
    ([0], False),
    ([15], False),
    ([121], False),
    ([13], True),
    ([8], False),
]
