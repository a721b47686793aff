"""A title as part of an address; the mistake: it leaves dashes at the end."""


def slugify(title):
    slug = ""
    for char in title.lower():
        if char.isalnum():
            slug += char
        elif slug and slug[-1] != "-":
            slug += "-"
    return slug.strip("-")


FAULTY = """
def slugify(title):
    slug = ""
    for char in title.lower():
        if char.isalnum():
            slug += char
        elif slug and slug[-1] != "-":
            slug += "-"
    return slug
"""

CASES = [
    (["Hello, world!"], "hello-world"),
    (["a b"], "a-b"),
    (["What?"], "what"),
    ([" x "], "x"),
    (["One  two"], "one-two"),
    (["Done."], "done"),
    ([""], ""),
    (["(in brackets)"], "in-brackets"),
    (["C++"], "c"),
    (["99 %"], "99"),
]
