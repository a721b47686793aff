"""Names like "file10" by their number; the mistake: the numbers are compared as text."""


def sort_numbered(names):
    keyed = []
    for name in names:
        digits = "".join(char for char in name if char.isdigit())
        keyed.append([int(digits), name])
    return [name for number, name in sorted(keyed)]


FAULTY = """
def sort_numbered(names):
    keyed = []
    for name in names:
        digits = "".join(char for char in name if char.isdigit())
        keyed.append([digits, name])
    return [name for number, name in sorted(keyed)]
"""

CASES = [
    ([["f10", "f9"]], ["f9", "f10"]),
    ([["f2", "f10"]], ["f2", "f10"]),
    ([[]], []),
    ([["a1"]], ["a1"]),
    ([["x3", "x2", "x1"]], ["x1", "x2", "x3"]),
    ([["p100", "p20", "p3"]], ["p3", "p20", "p100"]),
    ([["v1", "v11", "v2"]], ["v1", "v2", "v11"]),
    ([["q7", "q70", "q8"]], ["q7", "q8", "q70"]),
    ([["b5", "a5"]], ["a5", "b5"]),
]
