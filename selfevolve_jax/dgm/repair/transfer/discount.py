"""Per cent off by how many are bought; the mistake: the smaller step is asked for first."""


def discount(count):
    if count >= 100:
        return 20
    elif count >= 10:
        return 5
    return 0


FAULTY = """
def discount(count):
    if count >= 10:
        return 5
    elif count >= 100:
        return 20
    return 0
"""

CASES = [
    ([100], 20),
    ([150], 20),
    ([10], 5),
    ([9], 0),
    ([99], 5),
    ([500], 20),
    ([1000], 20),
    ([101], 20),
    ([0], 0),
    ([50], 5),
]
