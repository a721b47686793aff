"""The prime factors of n in order, each as often as it divides n."""


def factorise(n):
    factors = []
    divisor = 2
    while divisor * divisor <= n:
        if n % divisor == 0:
            factors.append(divisor)
            n = n // divisor
        else:
            divisor += 1
    if n > 1:
        factors.append(n)
    return factors


CASES = [
    ([12], [2, 2, 3]),
    ([1], []),
    ([2], [2]),
    ([9], [3, 3]),
    ([17], [17]),
    ([100], [2, 2, 5, 5]),
    ([84], [2, 2, 3, 7]),
    ([49], [7, 7]),
    ([30], [2, 3, 5]),
    ([64], [2, 2, 2, 2, 2, 2]),
    ([221], [13, 17]),
    ([75], [3, 5, 5]),
]
