"""Whether a year has 366 days."""


def is_leap_year(year):
    if year % 400 == 0:
        return True
    if year % 100 == 0:
        return False
    return year % 4 == 0


CASES = [
    ([2024], True),
    ([2023], False),
    ([1900], False),
    ([2000], True),
    ([2100], False),
    ([1996], True),
    ([1600], True),
    ([2022], False),
    ([400], True),
    ([1800], False),
    ([4], True),
    ([1999], False),
]
