"""The n-th Fibonacci number, from 0, 1, 1, 2."""


def fibonacci(n):
    previous = 0
    current = 1
    for _ in range(n):
        following = previous + current
        previous = current
        current = following
    return previous


CASES = [
    ([0], 0),
    ([1], 1),
    ([2], 1),
    ([3], 2),
    ([4], 3),
    ([5], 5),
    ([7], 13),
    ([10], 55),
    ([15], 610),
    ([20], 6765),
]
