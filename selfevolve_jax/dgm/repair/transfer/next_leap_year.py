"""The first leap year after a year; the mistake: a year that is one gives itself."""


def next_leap_year(year):
    year += 1
    while year % 4 != 0 or (year % 100 == 0 and year % 400 != 0):
        year += 1
    return year


FAULTY = """
def next_leap_year(year):
    while year % 4 != 0 or (year % 100 == 0 and year % 400 != 0):
        year += 1
    return year
"""

CASES = [
    ([2024], 2028),
    ([2023], 2024),
    ([2000], 2004),
    ([1999], 2000),
    ([2096], 2104),
    ([1896], 1904),
    ([2020], 2024),
    ([1600], 1604),
    ([2021], 2024),
    ([4], 8),
]
