"""A word in pig Latin; the mistake: words that begin with a vowel have no rule."""


def pig_latin(word):
    if word[0] in "aeiou":
        return word + "way"
    start = 0
    while start < len(word) and word[start] not in "aeiou":
        start += 1
    return word[start:] + word[:start] + "ay"


FAULTY = """
def pig_latin(word):
    start = 0
    while start < len(word) and word[start] not in "aeiou":
        start += 1
    return word[start:] + word[:start] + "ay"
"""

CASES = [
    (["apple"], "appleway"),
    (["eat"], "eatway"),
    (["pig"], "igpay"),
    (["string"], "ingstray"),
    (["under"], "underway"),
    (["omelet"], "omeletway"),
    (["my"], "myay"),
    (["is"], "isway"),
    (["latin"], "atinlay"),
    (["egg"], "eggway"),
]
