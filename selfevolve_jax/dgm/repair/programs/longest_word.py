"""The longest word, the first of several, without punctuation at its ends."""


def longest_word(text):
    best = ""
    for part in text.split():
        word = part.strip(".,;!?")
        if len(word) > len(best):
            best = word
    return best


CASES = [
    (["a bb ccc"], "ccc"),
    ([""], ""),
    (["one two six"], "one"),
    (["well, done!!!!"], "well"),
    (["I am here"], "here"),
    (["x"], "x"),
    (["to be, or not..."], "not"),
    (["the longest, word. here?"], "longest"),
    (["go; stop"], "stop"),
]
