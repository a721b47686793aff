"""Whether brackets are closed in the order in which they were opened."""


def balanced(text):
    pairs = {")": "(", "]": "[", "}": "{"}
    stack = []
    for char in text:
        if char in "([{":
            stack.append(char)
        elif char in pairs and (not stack or stack.pop() != pairs[char]):
            return False
    return len(stack) == 0


CASES = [
    (["()"], True),
    ([""], True),
    (["("], False),
    ([")"], False),
    (["([)]"], False),
    (["([]{})"], True),
    (["a(b)c"], True),
    (["]["], False),
    (["(()"], False),
    (["{[()]}"], True),
    (["(a]"], False),
    (["no brackets"], True),
]
