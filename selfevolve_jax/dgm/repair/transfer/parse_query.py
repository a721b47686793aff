"""The pairs of "a=1&b=2"; the mistake: a value with "=" in it is cut off."""


def parse_query(text):
    pairs = {}
    for part in text.split("&"):
        if part:
            pieces = part.split("=")
            pairs[pieces[0]] = "=".join(pieces[1:])
    return pairs


FAULTY = """
def parse_query(text):
    pairs = {}
    for part in text.split("&"):
        if part:
            pieces = part.split("=")
            pairs[pieces[0]] = pieces[1]
    return pairs
"""

CASES = [
    (["a=1&b=2"], {"a": "1", "b": "2"}),
    ([""], {}),
    (["x="], {"x": ""}),
    (["token=ab=="], {"token": "ab=="}),
    (["q=1=2"], {"q": "1=2"}),
    (["flag"], {"flag": ""}),
    (["a=b=c&d=e"], {"a": "b=c", "d": "e"}),
    (["e=mc=2"], {"e": "mc=2"}),
    (["one&two=2"], {"one": "", "two": "2"}),
]
