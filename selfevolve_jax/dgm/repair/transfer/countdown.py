"""From n down to 1; the mistake: it says zero too."""


def countdown(n):
    said = []
    while n > 0:
        said.append(n)
        n -= 1
    return said


FAULTY = """
def countdown(n):
    said = []
    while n >= 0:
        said.append(n)
        n -= 1
    return said
"""

CASES = [
    ([3], [3, 2, 1]),
    ([1], [1]),
    ([0], []),
    ([5], [5, 4, 3, 2, 1]),
    ([2], [2, 1]),
    ([4], [4, 3, 2, 1]),
    ([7], [7, 6, 5, 4, 3, 2, 1]),
    ([6], [6, 5, 4, 3, 2, 1]),
]
