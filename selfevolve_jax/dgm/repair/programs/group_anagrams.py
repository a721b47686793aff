"""Words of the same letters side by side, in order of their first."""


def group_anagrams(words):
    groups = {}
    for word in words:
        key = "".join(sorted(word))
        if key not in groups:
            groups[key] = []
        groups[key].append(word)
    return list(groups.values())


CASES = [
    ([["eat", "tea", "tan"]], [["eat", "tea"], ["tan"]]),
    ([[]], []),
    ([["a"]], [["a"]]),
    ([["ab", "ba", "abc"]], [["ab", "ba"], ["abc"]]),
    ([["x", "y"]], [["x"], ["y"]]),
    ([["dog", "god", "dog"]], [["dog", "god", "dog"]]),
    ([["stop", "pots", "opts", "tops"]], [["stop", "pots", "opts", "tops"]]),
    ([["aa", "a", "aa"]], [["aa", "aa"], ["a"]]),
    ([["listen", "silent", "enlist", "tin"]], [["listen", "silent", "enlist"], ["tin"]]),
]
