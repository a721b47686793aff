"""Moves each letter along the alphabet, keeping its case; the rest stays."""


def caesar(text, shift):
    result = ""
    for char in text:
        if char.islower():
            result += chr((ord(char) - 97 + shift) % 26 + 97)
        elif char.isupper():
            result += chr((ord(char) - 65 + shift) % 26 + 65)
        else:
            result += char
    return result


CASES = [
    (["abc", 1], "bcd"),
    (["xyz", 3], "abc"),
    (["Hello", 0], "Hello"),
    (["Hello, World", 5], "Mjqqt, Btwqi"),
    (["ABC", -1], "ZAB"),
    (["", 7], ""),
    (["zZ", 1], "aA"),
    (["a b", 26], "a b"),
    (["Mix 42", 13], "Zvk 42"),
    (["QRS", 30], "UVW"),
]
