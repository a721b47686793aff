"""Whether a card number's check digit is right."""


def luhn_valid(number):
    total = 0
    digits = number[::-1]
    for i in range(len(digits)):
        digit = int(digits[i])
        if i % 2 == 1:
            digit = digit * 2
            if digit > 9:
                digit -= 9
        total += digit
    return total % 10 == 0


CASES = [
    (["79927398713"], True),
    (["79927398710"], False),
    (["0"], True),
    (["18"], True),
    (["26"], True),
    (["4539148803436467"], True),
    (["8273123273520569"], False),
    (["59"], True),
    (["91"], True),
    (["5"], False),
    (["42"], True),
    (["67"], True),
]
