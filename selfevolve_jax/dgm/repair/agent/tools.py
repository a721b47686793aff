"""What operators are made of: where in a program a change can be made, and the draw of one place.

An operator is a function (tree, draw) that changes one place of the tree and returns True, or returns
False where it finds none.
"""

import ast
import random

OPERATORS = {}
SEARCHES = {}


def operator(function):
    OPERATORS[function.__name__] = function
    return function


def search(function):
    SEARCHES[function.__name__] = function
    return function


class Draw(random.Random):
    """Random numbers, and `place`: one of several nodes, by the heat of its line where that is known
    (line -> weight)."""

    heat = None

    def place(self, nodes, line=lambda node: getattr(node, "lineno", 0)):
        if not nodes:
            return None
        if not self.heat:
            return self.choice(nodes)
        return self.choices(nodes, [0.05 + self.heat.get(line(n), 0.0) for n in nodes])[0]


def nodes(tree, *kinds) -> list:
    """All nodes of some kinds, in the order of the text."""
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def blocks(tree):
    """All lists of statements below function heads."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module):
            for field in ("body", "orelse"):
                block = getattr(node, field, None)
                if isinstance(block, list) and block:
                    found.append(block)
    return found


def statements(tree):
    """All (block, index) of statements inside functions."""
    return [(block, i) for block in blocks(tree) for i in range(len(block))]


def line_of(place):
    """The line of a (block, index)."""
    return place[0][place[1]].lineno


def slots(tree, accept):
    """All (parent, field, index or None) of which the node is accepted: where one may be replaced."""
    found = []
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if isinstance(parent, ast.JoinedStr) or field == "format_spec":
                continue  # an f-string's own parts
            if isinstance(value, list):
                found += [(parent, field, i) for i, v in enumerate(value) if accept(v)]
            elif isinstance(value, ast.AST) and accept(value):
                found.append((parent, field, None))
    return found


def get(slot):
    parent, field, index = slot
    value = getattr(parent, field)
    return value if index is None else value[index]


def put(slot, node):
    parent, field, index = slot
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def slot_line(slot):
    return getattr(get(slot), "lineno", 0)


def loaded(node):
    """Whether a node is an expression that is read: no name that is assigned to, no part of an
    f-string that cannot stand alone."""
    return (
        isinstance(node, ast.expr)
        and not isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del))
        and not isinstance(node, (ast.FormattedValue, ast.Slice))
    )


def copy(node):
    """A copy of an expression or a statement."""
    parsed: list = ast.parse(ast.unparse(node)).body
    return parsed[0] if isinstance(node, ast.stmt) else parsed[0].value
