"""The product of 1 to n; the mistake: range leaves out its end."""


def factorial(n):
    result = 1
    for i in range(1, n + 1):
        result *= i
    return result


FAULTY = """
def factorial(n):
    result = 1
    for i in range(1, n):
        result *= i
    return result
"""

CASES = [
    ([3], 6),
    ([4], 24),
    ([0], 1),
    ([1], 1),
    ([5], 120),
    ([6], 720),
    ([2], 2),
    ([7], 5040),
]
