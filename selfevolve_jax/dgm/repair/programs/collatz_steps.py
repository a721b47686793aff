"""How many Collatz steps lead from n to 1."""


def collatz_steps(n):
    steps = 0
    while n > 1:
        steps += 1
        if n % 2 == 0:
            n = n // 2
            continue
        n = 3 * n + 1
    return steps


CASES = [
    ([1], 0),
    ([2], 1),
    ([3], 7),
    ([6], 8),
    ([7], 16),
    ([16], 4),
    ([9], 19),
    ([19], 20),
    ([10], 6),
    ([27], 111),
]
