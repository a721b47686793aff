"""The value of a sum in reverse Polish notation."""


def evaluate_rpn(tokens):
    stack = []
    for token in tokens:
        if token in ["+", "-", "*"]:
            right = stack.pop()
            left = stack.pop()
            if token == "+":
                stack.append(left + right)
            elif token == "-":
                stack.append(left - right)
            else:
                stack.append(left * right)
        else:
            stack.append(int(token))
    return stack[-1]


CASES = [
    ([["2", "3", "+"]], 5),
    ([["5"]], 5),
    ([["7", "2", "-"]], 5),
    ([["4", "6", "*"]], 24),
    ([["1", "2", "+", "3", "*"]], 9),
    ([["8", "3", "1", "-", "-"]], 6),
    ([["2", "3", "4", "*", "+"]], 14),
    ([["10", "2", "8", "*", "+", "3", "-"]], 23),
    ([["9", "9", "-"]], 0),
    ([["3", "5", "-", "2", "*"]], -4),
]
