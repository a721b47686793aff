"""The text that "3a2b" is short for; a letter without a number stands once."""


def expand_runs(code):
    result = ""
    number = 0
    for char in code:
        if char.isdigit():
            number = number * 10 + int(char)
        else:
            if number == 0:
                number = 1
            result += char * number
            number = 0
    return result


CASES = [
    (["3a2b"], "aaabb"),
    ([""], ""),
    (["abc"], "abc"),
    (["12x"], "xxxxxxxxxxxx"),
    (["a3b"], "abbb"),
    (["2a10b"], "aabbbbbbbbbb"),
    (["1z"], "z"),
    (["4-"], "----"),
    (["x2y3z"], "xyyzzz"),
    (["11ab"], "aaaaaaaaaaab"),
]
