"""camelCase in snake_case; the mistake: a first capital gets a line before it."""


def snake_case(name):
    result = ""
    for i in range(len(name)):
        if name[i].isupper() and i > 0:
            result += "_"
        result += name[i].lower()
    return result


FAULTY = """
def snake_case(name):
    result = ""
    for i in range(len(name)):
        if name[i].isupper():
            result += "_"
        result += name[i].lower()
    return result
"""

CASES = [
    (["camelCase"], "camel_case"),
    (["CamelCase"], "camel_case"),
    (["X"], "x"),
    (["Word"], "word"),
    (["plain"], "plain"),
    (["OneTwoThree"], "one_two_three"),
    (["aB"], "a_b"),
    (["Ab"], "ab"),
    ([""], ""),
    (["Q"], "q"),
]
