"""Lines of stars that widen by two; the mistake: a space too many before each."""


def pyramid(height):
    lines = []
    for i in range(height):
        lines.append(" " * (height - i - 1) + "*" * (2 * i + 1))
    return lines


FAULTY = """
def pyramid(height):
    lines = []
    for i in range(height):
        lines.append(" " * (height - i) + "*" * (2 * i + 1))
    return lines
"""

CASES = [
    ([1], ["*"]),
    ([2], [" *", "***"]),
    ([0], []),
    ([3], ["  *", " ***", "*****"]),
    ([4], ["   *", "  ***", " *****", "*******"]),
    ([5], ["    *", "   ***", "  *****", " *******", "*********"]),
    ([6], ["     *", "    ***", "   *****", "  *******", " *********", "***********"]),
    (
        [7],
        [
            "      *",
            "     ***",
            "    *****",
            "   *******",
            "  *********",
            " ***********",
            "*************",
        ],
    ),
]
