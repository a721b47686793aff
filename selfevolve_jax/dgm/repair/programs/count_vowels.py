"""How many vowels a text has, "y" counted only where it ends a word."""


def count_vowels(text):
    count = 0
    for word in text.lower().split():
        for i in range(len(word)):
            last = i == len(word) - 1
            if word[i] in "aeiou" or (last and word[i] == "y"):
                count += 1
    return count


CASES = [
    (["hello"], 2),
    ([""], 0),
    (["rhythm"], 0),
    (["happy day"], 4),
    (["yes you may"], 5),
    (["AEIOU"], 5),
    (["sky"], 1),
    (["why try my luck"], 4),
    (["python"], 1),
    (["queue up early"], 8),
]
