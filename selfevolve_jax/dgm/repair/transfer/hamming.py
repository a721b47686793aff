"""How many places two texts differ in; the mistake: what the longer has beyond is not counted."""


def hamming(a, b):
    count = abs(len(a) - len(b))
    for x, y in zip(a, b, strict=False):
        if x != y:
            count += 1
    return count


FAULTY = """
def hamming(a, b):
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            count += 1
    return count
"""

CASES = [
    (["abc", "abd"], 1),
    (["", ""], 0),
    (["abc", "ab"], 1),
    (["a", "abc"], 2),
    (["", "xyz"], 3),
    (["same", "same"], 0),
    (["night", "nacht!"], 3),
    (["tool", "foolish"], 4),
    (["x", "y"], 1),
    (["ab", "ba"], 2),
]
