"""Whether the letters read the same from both ends, without regard to case."""


def is_palindrome(text):
    letters = []
    for char in text.lower():
        if char.isalpha():
            letters.append(char)
    left = 0
    right = len(letters) - 1
    while left < right:
        if letters[left] != letters[right]:
            return False
        left += 1
        right -= 1
    return True


CASES = [
    (["level"], True),
    (["Never odd or even"], True),
    (["hello"], False),
    ([""], True),
    (["ab"], False),
    (["Aa"], True),
    (["abca"], False),
    (["x"], True),
    (["No, it is open on one position"], True),
    (["abcdba"], False),
    (["abba"], True),
    (["raceban"], False),
]
