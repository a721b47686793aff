"""How many moves a tower of n needs; the mistake: the largest disc's own move."""


def hanoi_moves(n):
    if n == 0:
        return 0
    return 2 * hanoi_moves(n - 1) + 1


FAULTY = """
def hanoi_moves(n):
    if n == 0:
        return 0
    return 2 * hanoi_moves(n - 1)
"""

CASES = [
    ([1], 1),
    ([2], 3),
    ([0], 0),
    ([3], 7),
    ([4], 15),
    ([5], 31),
    ([6], 63),
    ([8], 255),
]
