"""Two lists in turn, then what is left; the mistake: what is left is forgotten."""


def interleave(a, b):
    result = []
    shorter = min(len(a), len(b))
    for i in range(shorter):
        result.append(a[i])
        result.append(b[i])
    return result + a[shorter:] + b[shorter:]


FAULTY = """
def interleave(a, b):
    result = []
    shorter = min(len(a), len(b))
    for i in range(shorter):
        result.append(a[i])
        result.append(b[i])
    return result
"""

CASES = [
    ([[1, 3], [2, 4]], [1, 2, 3, 4]),
    ([[1], []], [1]),
    ([[], [5, 6]], [5, 6]),
    ([[1, 2, 3], [9]], [1, 9, 2, 3]),
    ([[1], [2, 3]], [1, 2, 3]),
    ([[], []], []),
    ([[7, 7], [8]], [7, 8, 7]),
    ([["a"], ["b", "c"]], ["a", "b", "c"]),
]
