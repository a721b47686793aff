"""How many insertions, deletions and substitutions turn a into b."""


def edit_distance(a, b):
    previous = list(range(len(b) + 1))
    for i in range(len(a)):
        current = [i + 1]
        for j in range(len(b)):
            cost = 0 if a[i] == b[j] else 1
            current.append(min(previous[j] + cost, previous[j + 1] + 1, current[j] + 1))
        previous = current
    return previous[-1]


CASES = [
    (["cat", "cut"], 1),
    (["", ""], 0),
    (["", "abc"], 3),
    (["abc", ""], 3),
    (["kitten", "sitting"], 3),
    (["flaw", "lawn"], 2),
    (["same", "same"], 0),
    (["a", "b"], 1),
    (["ab", "ba"], 2),
    (["sunday", "saturday"], 3),
    (["book", "back"], 2),
]
