"""Words in lines of a width at most; a longer word has its own line."""


def wrap_text(text, width):
    lines = []
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = ""
        if line:
            line += " " + word
        else:
            line = word
    if line:
        lines.append(line)
    return lines


CASES = [
    (["a b c", 3], ["a b", "c"]),
    (["", 5], []),
    (["hello", 3], ["hello"]),
    (["the quick brown fox", 10], ["the quick", "brown fox"]),
    (["one two", 7], ["one two"]),
    (["one two", 6], ["one", "two"]),
    (["aa bb cc dd", 5], ["aa bb", "cc dd"]),
    (["x", 1], ["x"]),
    (["to be or not to be", 6], ["to be", "or not", "to be"]),
    (["longword a b", 4], ["longword", "a b"]),
]
