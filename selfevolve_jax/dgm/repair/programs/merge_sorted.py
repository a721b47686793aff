"""One sorted list of two sorted lists."""


def merge_sorted(a, b):
    result = []
    i = 0
    j = 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            result.append(a[i])
            i += 1
        else:
            result.append(b[j])
            j += 1
    return result + a[i:] + b[j:]


CASES = [
    ([[1, 3], [2, 4]], [1, 2, 3, 4]),
    ([[], []], []),
    ([[1], []], [1]),
    ([[], [2, 3]], [2, 3]),
    ([[1, 2], [3, 4]], [1, 2, 3, 4]),
    ([[5, 6], [1, 2]], [1, 2, 5, 6]),
    ([[1, 1], [1]], [1, 1, 1]),
    ([[2, 9], [3, 4, 5]], [2, 3, 4, 5, 9]),
    ([[0, 4, 8], [4]], [0, 4, 4, 8]),
    ([[7], [1, 8, 9]], [1, 7, 8, 9]),
]
