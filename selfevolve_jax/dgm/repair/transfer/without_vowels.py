"""A text without its vowels; the mistake: it keeps just those."""


def without_vowels(text):
    result = ""
    for char in text:
        if char.lower() not in "aeiou":
            result += char
    return result


FAULTY = """
def without_vowels(text):
    result = ""
    for char in text:
        if char.lower() in "aeiou":
            result += char
    return result
"""

CASES = [
    (["hello"], "hll"),
    (["sky"], "sky"),
    ([""], ""),
    (["Apple"], "ppl"),
    (["aeiou"], ""),
    (["x y z"], "x y z"),
    (["Quiet"], "Qt"),
    (["bcd"], "bcd"),
]
