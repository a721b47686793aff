"""Each run of one character as [character, length]."""


def run_length(text):
    runs = []
    count = 0
    for i in range(len(text)):
        count += 1
        if i == len(text) - 1 or text[i] != text[i + 1]:
            runs.append([text[i], count])
            count = 0
    return runs


CASES = [
    (["aab"], [["a", 2], ["b", 1]]),
    ([""], []),
    (["a"], [["a", 1]]),
    (["abc"], [["a", 1], ["b", 1], ["c", 1]]),
    (["aaa"], [["a", 3]]),
    (["aabbb"], [["a", 2], ["b", 3]]),
    (["abba"], [["a", 1], ["b", 2], ["a", 1]]),
    (["zzzzy"], [["z", 4], ["y", 1]]),
    (["112"], [["1", 2], ["2", 1]]),
    (["  x"], [[" ", 2], ["x", 1]]),
]
