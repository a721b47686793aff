"""What share a part is, rounded to a whole per cent; the mistake: divided before multiplied."""


def percentage(part, whole):
    if whole == 0:
        return 0
    return (part * 100 + whole // 2) // whole


FAULTY = """
def percentage(part, whole):
    if whole == 0:
        return 0
    return part // whole * 100
"""

CASES = [
    ([1, 2], 50),
    ([0, 5], 0),
    ([1, 3], 33),
    ([2, 3], 67),
    ([5, 5], 100),
    ([3, 0], 0),
    ([7, 8], 88),
    ([1, 200], 1),
    ([9, 10], 90),
    ([3, 4], 75),
]
