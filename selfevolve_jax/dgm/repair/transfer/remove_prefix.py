"""A text without its beginning, where it is that; the mistake: a character too much goes."""


def remove_prefix(text, prefix):
    if text.startswith(prefix):
        return text[len(prefix) :]
    return text


FAULTY = """
def remove_prefix(text, prefix):
    if text.startswith(prefix):
        return text[len(prefix) + 1 :]
    return text
"""

CASES = [
    (["unhappy", "un"], "happy"),
    (["redo", "re"], "do"),
    (["cat", "dog"], "cat"),
    (["abc", ""], "abc"),
    (["prefix", "pre"], "fix"),
    (["aa", "a"], "a"),
    (["same", "same"], ""),
    (["xyz", "x"], "yz"),
]
