"""The game up to n; the mistake: the rule for both comes too late."""


def fizzbuzz(n):
    said = []
    for i in range(1, n + 1):
        if i % 15 == 0:
            said.append("fizzbuzz")
        elif i % 3 == 0:
            said.append("fizz")
        elif i % 5 == 0:
            said.append("buzz")
        else:
            said.append(str(i))
    return said


FAULTY = """
def fizzbuzz(n):
    said = []
    for i in range(1, n + 1):
        if i % 3 == 0:
            said.append("fizz")
        elif i % 5 == 0:
            said.append("buzz")
        elif i % 15 == 0:
            said.append("fizzbuzz")
        else:
            said.append(str(i))
    return said
"""

CASES = [
    (
        [15],
        [
            "1",
            "2",
            "fizz",
            "4",
            "buzz",
            "fizz",
            "7",
            "8",
            "fizz",
            "buzz",
            "11",
            "fizz",
            "13",
            "14",
            "fizzbuzz",
        ],
    ),
    (
        [16],
        [
            "1",
            "2",
            "fizz",
            "4",
            "buzz",
            "fizz",
            "7",
            "8",
            "fizz",
            "buzz",
            "11",
            "fizz",
            "13",
            "14",
            "fizzbuzz",
            "16",
        ],
    ),
    ([5], ["1", "2", "fizz", "4", "buzz"]),
    ([3], ["1", "2", "fizz"]),
    ([1], ["1"]),
    (
        [17],
        [
            "1",
            "2",
            "fizz",
            "4",
            "buzz",
            "fizz",
            "7",
            "8",
            "fizz",
            "buzz",
            "11",
            "fizz",
            "13",
            "14",
            "fizzbuzz",
            "16",
            "17",
        ],
    ),
    (
        [14],
        ["1", "2", "fizz", "4", "buzz", "fizz", "7", "8", "fizz", "buzz", "11", "fizz", "13", "14"],
    ),
    (
        [18],
        [
            "1",
            "2",
            "fizz",
            "4",
            "buzz",
            "fizz",
            "7",
            "8",
            "fizz",
            "buzz",
            "11",
            "fizz",
            "13",
            "14",
            "fizzbuzz",
            "16",
            "17",
            "fizz",
        ],
    ),
    ([0], []),
    (
        [20],
        [
            "1",
            "2",
            "fizz",
            "4",
            "buzz",
            "fizz",
            "7",
            "8",
            "fizz",
            "buzz",
            "11",
            "fizz",
            "13",
            "14",
            "fizzbuzz",
            "16",
            "17",
            "fizz",
            "19",
            "buzz",
        ],
    ),
]
