"""What must be done before what; the mistake: a thing is put down before what it needs."""


def build_order(needs):
    done = []
    for name in sorted(needs):
        visit(name, needs, done)
    return done


def visit(name, needs, done):
    if name in done:
        return
    for other in needs.get(name, []):
        visit(other, needs, done)
    done.append(name)


FAULTY = """
def build_order(needs):
    done = []
    for name in sorted(needs):
        visit(name, needs, done)
    return done


def visit(name, needs, done):
    if name in done:
        return
    done.append(name)
    for other in needs.get(name, []):
        visit(other, needs, done)
"""

CASES = [
    ([{"a": ["b"], "b": []}], ["b", "a"]),
    ([{}], []),
    ([{"app": ["lib", "ui"], "lib": [], "ui": ["lib"]}], ["lib", "ui", "app"]),
    ([{"x": []}], ["x"]),
    ([{"a": ["c"], "b": ["a"], "c": []}], ["c", "a", "b"]),
    ([{"d": ["c"], "c": ["b"], "b": ["a"]}], ["a", "b", "c", "d"]),
    ([{"a": [], "b": []}], ["a", "b"]),
    ([{"run": ["test"], "test": ["build"]}], ["build", "test", "run"]),
    ([{"m": ["z"], "z": []}], ["z", "m"]),
    ([{"k": ["j"], "j": []}], ["j", "k"]),
]
