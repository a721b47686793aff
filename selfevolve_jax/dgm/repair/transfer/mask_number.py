"""All but the last four digits hidden; the mistake: one digit too many is hidden, twice."""


def mask_number(number):
    if len(number) <= 4:
        return number
    return "*" * (len(number) - 4) + number[-4:]


FAULTY = """
def mask_number(number):
    if len(number) < 4:
        return number
    return "*" * (len(number) - 3) + number[-3:]
"""

CASES = [
    (["12345678"], "****5678"),
    (["1234"], "1234"),
    (["123"], "123"),
    (["12345"], "*2345"),
    (["0000111122223333"], "************3333"),
    (["9"], "9"),
    (["55555"], "*5555"),
    (["4321"], "4321"),
    (["987654"], "**7654"),
    (["8888"], "8888"),
]
