"""-1, 0 or 1 as the first version is older, the same or newer."""


def compare_versions(first, second):
    a = [int(part) for part in first.split(".")]
    b = [int(part) for part in second.split(".")]
    for i in range(max(len(a), len(b))):
        left = a[i] if i < len(a) else 0
        right = b[i] if i < len(b) else 0
        if left < right:
            return -1
        if left > right:
            return 1
    return 0


CASES = [
    (["1.0", "1.1"], -1),
    (["1.0", "1"], 0),
    (["2.10", "2.9"], 1),
    (["1.2.3", "1.2.3"], 0),
    (["0.1", "0.0.9"], 1),
    (["3", "3.0.1"], -1),
    (["10.4", "9.9.9"], 1),
    (["1.0.0", "1"], 0),
    (["1.2", "1.3.1"], -1),
    (["5.0.2", "5"], 1),
]
