"""What all words begin with."""


def common_prefix(words):
    if not words:
        return ""
    shortest = min(len(word) for word in words)
    for i in range(shortest):
        for word in words:
            if word[i] != words[0][i]:
                return words[0][:i]
    return words[0][:shortest]


CASES = [
    ([["flower", "flow", "flight"]], "fl"),
    ([[]], ""),
    ([["abc"]], "abc"),
    ([["a", "b"]], ""),
    ([["car", "cart", "carton"]], "car"),
    ([["same", "same"]], "same"),
    ([["", "x"]], ""),
    ([["tester", "test", "team"]], "te"),
    ([["interval", "internal"]], "inter"),
    ([["ab", "abc", "abd"]], "ab"),
]
