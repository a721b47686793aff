"""The primes below a limit, by a sieve."""


def primes_below(limit):
    is_prime = [True] * max(limit, 2)
    primes = []
    for n in range(2, limit):
        if is_prime[n]:
            primes.append(n)
            for multiple in range(n * n, limit, n):
                is_prime[multiple] = False
    return primes


CASES = [
    ([10], [2, 3, 5, 7]),
    ([2], []),
    ([3], [2]),
    ([0], []),
    ([20], [2, 3, 5, 7, 11, 13, 17, 19]),
    ([30], [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]),
    ([5], [2, 3]),
    ([12], [2, 3, 5, 7, 11]),
    ([50], [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]),
    ([26], [2, 3, 5, 7, 11, 13, 17, 19, 23]),
]
