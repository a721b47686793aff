"""The whole number that Roman numerals stand for."""


def from_roman(text):
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    for i in range(len(text)):
        value = values[text[i]]
        if i + 1 < len(text) and value < values[text[i + 1]]:
            total -= value
        else:
            total += value
    return total


CASES = [
    (["I"], 1),
    (["IV"], 4),
    (["IX"], 9),
    (["XIV"], 14),
    (["XL"], 40),
    (["XC"], 90),
    (["CD"], 400),
    (["MCMLXXXVII"], 1987),
    (["MMXXIV"], 2024),
    (["VIII"], 8),
    (["LVIII"], 58),
    ([""], 0),
]
