"""The year and month n months on; the mistake: December becomes month 0."""


def add_months(year, month, n):
    total = year * 12 + month - 1 + n
    return [total // 12, total % 12 + 1]


FAULTY = """
def add_months(year, month, n):
    total = year * 12 + month + n
    return [total // 12, total % 12]
"""

CASES = [
    ([2024, 11, 1], [2024, 12]),
    ([2024, 1, 0], [2024, 1]),
    ([2024, 12, 0], [2024, 12]),
    ([2024, 12, 1], [2025, 1]),
    ([2023, 5, 7], [2023, 12]),
    ([2023, 5, 8], [2024, 1]),
    ([2020, 1, -1], [2019, 12]),
    ([2020, 3, 24], [2022, 3]),
    ([2019, 10, 2], [2019, 12]),
    ([2021, 6, 6], [2021, 12]),
]
