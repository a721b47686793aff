"""A whole number in Roman numerals."""


def to_roman(number):
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    signs = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    result = ""
    for i in range(len(values)):
        while number >= values[i]:
            result += signs[i]
            number -= values[i]
    return result


CASES = [
    ([1], "I"),
    ([4], "IV"),
    ([9], "IX"),
    ([14], "XIV"),
    ([40], "XL"),
    ([90], "XC"),
    ([400], "CD"),
    ([1987], "MCMLXXXVII"),
    ([2024], "MMXXIV"),
    ([3999], "MMMCMXCIX"),
    ([8], "VIII"),
    ([58], "LVIII"),
]
