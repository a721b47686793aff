"""Which day of the year a date is, 1 to 366."""


def day_of_year(year, month, day):
    lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    total = day
    for i in range(month - 1):
        total += lengths[i]
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if leap and month > 2:
        total += 1
    return total


CASES = [
    ([2023, 1, 1], 1),
    ([2023, 12, 31], 365),
    ([2024, 12, 31], 366),
    ([2024, 2, 29], 60),
    ([2024, 3, 1], 61),
    ([2023, 3, 1], 60),
    ([1900, 3, 1], 60),
    ([2000, 7, 4], 186),
    ([2021, 2, 28], 59),
    ([2100, 10, 10], 283),
    ([2020, 1, 31], 31),
]
