"""The day of the week, 0 for Sunday, by Sakamoto's method; the mistake: March counts as early."""


def weekday(year, month, day):
    shifts = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4]
    if month < 3:
        year = year - 1
    return (year + year // 4 - year // 100 + year // 400 + shifts[month - 1] + day) % 7


FAULTY = """
def weekday(year, month, day):
    shifts = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4]
    if month <= 3:
        year = year - 1
    return (year + year // 4 - year // 100 + year // 400 + shifts[month - 1] + day) % 7
"""

CASES = [
    ([2024, 3, 1], 5),
    ([2024, 1, 1], 1),
    ([2023, 3, 15], 3),
    ([2000, 2, 29], 2),
    ([2021, 3, 31], 3),
    ([1999, 3, 5], 5),
    ([2022, 7, 4], 1),
    ([2020, 3, 9], 1),
    ([2010, 3, 3], 3),
    ([1900, 12, 31], 1),
]
