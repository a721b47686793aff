"""Tax by brackets: nothing to 10000, a tenth to 40000, three tenths above."""


def income_tax(income):
    tax = 0
    if income > 40000:
        tax += (income - 40000) * 3 // 10
        income = 40000
    if income > 10000:
        tax += (income - 10000) // 10
    return tax


CASES = [
    ([0], 0),
    ([10000], 0),
    ([10010], 1),
    ([20000], 1000),
    ([40000], 3000),
    ([40010], 3003),
    ([50000], 6000),
    ([100000], 21000),
    ([9999], 0),
    ([25000], 1500),
]
