"""Whether it is long and has a digit and a capital; the mistake: the first character decides."""


def strong_password(text):
    digit = False
    capital = False
    for char in text:
        if char.isdigit():
            digit = True
        if char.isupper():
            capital = True
    return digit and capital and len(text) >= 8


FAULTY = """
def strong_password(text):
    digit = False
    capital = False
    for char in text:
        digit = char.isdigit()
        capital = char.isupper()
    return digit and capital and len(text) >= 8
"""

CASES = [
    (["Password1"], True),
    (["1Password"], True),
    (["password1"], False),
    (["PASSword"], False),
    (["Pass1"], False),
    (["aB3defgh"], True),
    (["12345678A"], True),
    (["Zz9zzzzz"], True),
    (["abcdefgh"], False),
    (["longEnough7"], True),
]
