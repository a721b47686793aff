"""Capitals for the first letter of each word but small ones after the first word."""


def title_case(text):
    small = ["a", "an", "and", "of", "the"]
    result = []
    words = text.lower().split()
    for i in range(len(words)):
        word = words[i]
        if i > 0 and word in small:
            result.append(word)
        else:
            result.append(word[0].upper() + word[1:])
    return " ".join(result)


CASES = [
    (["the lord of the rings"], "The Lord of the Rings"),
    ([""], ""),
    (["hello"], "Hello"),
    (["WAR AND PEACE"], "War and Peace"),
    (["a tale"], "A Tale"),
    (["x y z"], "X Y Z"),
    (["of mice and men"], "Of Mice and Men"),
    (["an ode to the sea"], "An Ode To the Sea"),
    (["gone with the wind"], "Gone With the Wind"),
]
