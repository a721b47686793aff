"""How often each word is there, without case and punctuation."""


def word_counts(text):
    counts = {}
    for part in text.lower().split():
        word = part.strip(".,!?")
        if word:
            if word in counts:
                counts[word] += 1
            else:
                counts[word] = 1
    return counts


CASES = [
    (["a b a"], {"a": 2, "b": 1}),
    ([""], {}),
    (["Hello, hello!"], {"hello": 2}),
    (["one"], {"one": 1}),
    (["the cat. The dog."], {"the": 2, "cat": 1, "dog": 1}),
    (["! ?"], {}),
    (["x, y, x"], {"x": 2, "y": 1}),
    (["To be, or not to be"], {"to": 2, "be": 2, "or": 1, "not": 1}),
    (["go go GO"], {"go": 3}),
]
