"""All items of a list of lists of lists, in order."""


def flatten(nested):
    flat = []
    for item in nested:
        if isinstance(item, list):
            flat.extend(flatten(item))
        else:
            flat.append(item)
    return flat


CASES = [
    ([[1, [2, 3]]], [1, 2, 3]),
    ([[]], []),
    ([[[]]], []),
    ([[[1], [2], [3]]], [1, 2, 3]),
    ([[1, 2]], [1, 2]),
    ([[[1, [2, [3, [4]]]]]], [1, 2, 3, 4]),
    ([[[[]], 5, [6]]], [5, 6]),
    ([["a", ["b"]]], ["a", "b"]),
    ([[[1, 2], 3, [4, [5, 6]], 7]], [1, 2, 3, 4, 5, 6, 7]),
]
