"""The first letters of words in capitals; the mistake: counting from one."""


def initials(name):
    result = ""
    for word in name.split():
        result += word[0].upper()
    return result


FAULTY = """
def initials(name):
    result = ""
    for word in name.split():
        result += word[1].upper()
    return result
"""

CASES = [
    (["ada lovelace"], "AL"),
    (["Bob"], "B"),
    ([""], ""),
    (["Mary Ann Lee"], "MAL"),
    (["alan turing"], "AT"),
    (["to be"], "TB"),
    (["Grace Hopper"], "GH"),
    (["ok"], "O"),
]
