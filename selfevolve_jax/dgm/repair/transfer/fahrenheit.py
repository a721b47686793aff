"""Degrees Celsius as Fahrenheit; the mistake: 32 is added too early."""


def fahrenheit(celsius):
    return celsius * 9 / 5 + 32


FAULTY = """
def fahrenheit(celsius):
    return (celsius + 32) * 9 / 5
"""

CASES = [
    ([0], 32.0),
    ([100], 212.0),
    ([-40], -40.0),
    ([37], 98.6),
    ([20], 68.0),
    ([10], 50.0),
    ([-10], 14.0),
    ([5], 41.0),
]
