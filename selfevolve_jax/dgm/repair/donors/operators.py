"""The donor library: operators that an agent's child may take over, one function each.

They are generic edits of Python's syntax, and know no program of the benchmark. They overlap with the
classes of seeded faults by design, as docs/dgm_repair.md says. The last ones are of no use, or harm:
selection has something to do. evolve.py copies a function's text; the imports here are for readers,
linters and tests, and every agent's operators.py has the same names.
"""

import ast

from selfevolve_jax.dgm.repair.agent.tools import (
    blocks,
    copy,
    get,
    line_of,
    loaded,
    nodes,
    operator,
    put,
    slot_line,
    slots,
    statements,
)


@operator
def substitute_expression(tree, draw):
    """An expression becomes another one of the same function's text."""
    slot = draw.place(slots(tree, loaded), slot_line)
    if slot is None:
        return False
    other = draw.choice(slots(tree, loaded))
    put(slot, copy(get(other)))
    return True


@operator
def nudge_number(tree, draw):
    """A whole number becomes one more or one less."""
    numbers = [n for n in nodes(tree, ast.Constant) if type(n.value) is int]
    number = draw.place(numbers)
    if number is None:
        return False
    number.value += draw.choice([-1, 1])
    return True


@operator
def add_or_take_one(tree, draw):
    """A bound, index or operand x becomes x + 1 or x - 1."""

    def fits(node):
        return loaded(node) and isinstance(node, (ast.Name, ast.Call, ast.BinOp, ast.Subscript))

    slot = draw.place(slots(tree, fits), slot_line)
    if slot is None:
        return False
    change = draw.choice([ast.Add, ast.Sub])()
    put(slot, ast.BinOp(left=get(slot), op=change, right=ast.Constant(1)))
    return True


@operator
def drop_offset(tree, draw):
    """x + 1, x - 1 and the like become x."""

    def fits(node):
        return isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant)

    slot = draw.place(slots(tree, fits), slot_line)
    if slot is None:
        return False
    put(slot, get(slot).left)
    return True


@operator
def negate_condition(tree, draw):
    """A condition becomes its opposite."""
    place = draw.place(nodes(tree, ast.If, ast.While, ast.IfExp))
    if place is None:
        return False
    if isinstance(place.test, ast.UnaryOp) and isinstance(place.test.op, ast.Not):
        place.test = place.test.operand
    else:
        place.test = ast.UnaryOp(op=ast.Not(), operand=place.test)
    return True


@operator
def drop_not(tree, draw):
    """`not x` becomes x, anywhere."""

    def fits(node):
        return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)

    slot = draw.place(slots(tree, fits), slot_line)
    if slot is None:
        return False
    put(slot, get(slot).operand)
    return True


@operator
def change_comparison(tree, draw):
    """A comparison gets another operator."""
    place = draw.place(nodes(tree, ast.Compare))
    if place is None:
        return False
    i = draw.randrange(len(place.ops))
    kind = type(place.ops[i])
    families = [
        [ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq],
        [ast.In, ast.NotIn],
        [ast.Is, ast.IsNot],
    ]
    family = next(f for f in families if kind in f)
    place.ops[i] = draw.choice([k for k in family if k is not kind])()
    return True


@operator
def change_variable(tree, draw):
    """A variable that is read becomes another one of the same function."""
    functions = nodes(tree, ast.FunctionDef)
    function = draw.choice(functions) if functions else tree
    names = sorted(
        {n.id for n in nodes(function, ast.Name) if isinstance(n.ctx, ast.Store)}
        | {n.arg for n in nodes(function, ast.arg)}
    )
    place = draw.place([n for n in nodes(function, ast.Name) if n.id in names and loaded(n)])
    if place is None or len(names) < 2:
        return False
    place.id = draw.choice([name for name in names if name != place.id])
    return True


@operator
def change_target(tree, draw):
    """A variable that is assigned to becomes another one of the program."""
    stores = [n for n in nodes(tree, ast.Name) if isinstance(n.ctx, ast.Store)]
    place = draw.place(stores)
    names = sorted({n.id for n in stores} - {place.id if place else ""})
    if place is None or not names:
        return False
    place.id = draw.choice(names)
    return True


@operator
def swap_arguments(tree, draw):
    """Two arguments of a call change places."""
    place = draw.place([n for n in nodes(tree, ast.Call) if len(n.args) > 1])
    if place is None:
        return False
    i, j = draw.sample(range(len(place.args)), 2)
    place.args[i], place.args[j] = place.args[j], place.args[i]
    return True


@operator
def swap_operands(tree, draw):
    """a - b becomes b - a, and likewise with any operator or comparison."""
    place = draw.place(nodes(tree, ast.BinOp, ast.Compare))
    if place is None:
        return False
    if isinstance(place, ast.BinOp):
        place.left, place.right = place.right, place.left
    else:
        place.left, place.comparators[0] = place.comparators[0], place.left
    return True


@operator
def change_arithmetic(tree, draw):
    """+, -, *, //, / or % becomes another of them."""
    place = draw.place(nodes(tree, ast.BinOp, ast.AugAssign))
    if place is None:
        return False
    kinds = [ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod]
    place.op = draw.choice([k for k in kinds if k is not type(place.op)])()
    return True


@operator
def nudge_index(tree, draw):
    """An index, or an end of a slice, moves by one."""
    place = draw.place(nodes(tree, ast.Subscript))
    if place is None:
        return False
    step = ast.Constant(1)
    change = draw.choice([ast.Add, ast.Sub])
    if not isinstance(place.slice, ast.Slice):
        place.slice = ast.BinOp(left=place.slice, op=change(), right=step)
        return True
    end = draw.choice(["lower", "upper"])
    old = getattr(place.slice, end)
    if old is None:
        new = step if end == "lower" else ast.UnaryOp(op=ast.USub(), operand=step)
    else:
        new = draw.choice([None, ast.BinOp(left=old, op=change(), right=step)])
    setattr(place.slice, end, new)
    return True


@operator
def change_connective(tree, draw):
    """`and` becomes `or`, and the other way round."""
    place = draw.place(nodes(tree, ast.BoolOp))
    if place is None:
        return False
    place.op = ast.Or() if isinstance(place.op, ast.And) else ast.And()
    return True


@operator
def drop_clause(tree, draw):
    """One part of an `and` or an `or` goes."""
    slot = draw.place(slots(tree, lambda n: isinstance(n, ast.BoolOp)), slot_line)
    if slot is None:
        return False
    node = get(slot)
    del node.values[draw.randrange(len(node.values))]
    if len(node.values) == 1:
        put(slot, node.values[0])
    return True


@operator
def add_clause(tree, draw):
    """A condition gets a further part: a comparison from elsewhere, or a
    variable as a flag."""
    place = draw.place(nodes(tree, ast.If, ast.While))
    others = nodes(tree, ast.Compare)
    flags = sorted({n.id for n in nodes(tree, ast.Name) if isinstance(n.ctx, ast.Store)})
    others += [
        ast.parse(f"{kind} {flag}".strip(), mode="eval").body
        for flag in flags
        for kind in ("", "not")
    ]
    if place is None or not others:
        return False
    parts = [copy(draw.choice(others)), place.test]
    draw.shuffle(parts)
    place.test = ast.BoolOp(op=draw.choice([ast.And, ast.Or])(), values=parts)
    return True


@operator
def change_if_while(tree, draw):
    """`if` becomes `while`, and the other way round."""
    places = [
        (b, i)
        for b, i in statements(tree)
        if isinstance(b[i], ast.While) or (isinstance(b[i], ast.If) and not b[i].orelse)
    ]
    place = draw.place(places, line_of)
    if place is None:
        return False
    block, i = place
    kind = ast.If if isinstance(block[i], ast.While) else ast.While
    block[i] = kind(test=block[i].test, body=block[i].body, orelse=[])
    return True


@operator
def wrap_in_guard(tree, draw):
    """A statement is done only under a condition that the program has elsewhere."""
    place = draw.place(statements(tree), line_of)
    tests = [n.test for n in nodes(tree, ast.If, ast.While)] + nodes(tree, ast.Compare)
    if place is None or not tests:
        return False
    block, i = place
    block[i] = ast.If(test=copy(draw.choice(tests)), body=[block[i]], orelse=[])
    return True


@operator
def swap_statements(tree, draw):
    """Two neighbouring statements change places."""
    place = draw.place([(b, i) for b, i in statements(tree) if i + 1 < len(b)], line_of)
    if place is None:
        return False
    block, i = place
    block[i], block[i + 1] = block[i + 1], block[i]
    return True


@operator
def move_statement(tree, draw):
    """A statement moves elsewhere."""
    place = draw.place(statements(tree), line_of)
    if place is None or len(place[0]) < 2:
        return False
    block, i = place
    statement = block.pop(i)
    target = draw.choice(blocks(tree))
    target.insert(draw.randrange(len(target) + 1), statement)
    return True


@operator
def replace_statement(tree, draw):
    """A statement becomes a copy of another one."""
    place = draw.place(statements(tree), line_of)
    if place is None:
        return False
    block, i = draw.choice(statements(tree))
    place[0][place[1]] = copy(block[i])
    return True


@operator
def change_assignment(tree, draw):
    """= becomes += or -=, and the other way round."""
    found = [
        (b, i)
        for b, i in statements(tree)
        if isinstance(b[i], ast.AugAssign)
        or (isinstance(b[i], ast.Assign) and isinstance(b[i].targets[0], (ast.Name, ast.Subscript)))
    ]
    place = draw.place(found, line_of)
    if place is None:
        return False
    block, i = place
    old = block[i]
    if isinstance(old, ast.AugAssign):
        block[i] = ast.Assign(targets=[old.target], value=old.value, lineno=old.lineno)
    else:
        change = draw.choice([ast.Add, ast.Sub])()
        block[i] = ast.AugAssign(target=old.targets[0], op=change, value=old.value)
    return True


@operator
def change_method(tree, draw):
    """A method's name becomes another one that the program calls."""
    places = [n for n in nodes(tree, ast.Attribute) if loaded(n)]
    place = draw.place(places)
    names = sorted({n.attr for n in places} - {place.attr if place else ""})
    if place is None or not names:
        return False
    place.attr = draw.choice(names)
    return True


@operator
def change_function(tree, draw):
    """A call goes to another function: one easily confused with it, or one that the program calls."""
    calls = [n for n in nodes(tree, ast.Call) if isinstance(n.func, ast.Name)]
    place = draw.place(calls)
    if place is None:
        return False
    families = [
        ["min", "max"],
        ["any", "all"],
        ["list", "sorted", "reversed"],
        ["int", "round"],
    ]
    names = {n.func.id for n in calls}.union(*(f for f in families if place.func.id in f))
    names = sorted(names - {place.func.id})
    if not names:
        return False
    place.func.id = draw.choice(names)
    return True


@operator
def wrap_in_call(tree, draw):
    """An expression x becomes abs(x), int(x), len(x), list(x), sorted(x) or str(x)."""
    slot = draw.place(slots(tree, loaded), slot_line)
    if slot is None:
        return False
    name = draw.choice(["abs", "int", "len", "list", "sorted", "str"])
    put(slot, ast.Call(func=ast.Name(name, ast.Load()), args=[get(slot)], keywords=[]))
    return True


@operator
def drop_call(tree, draw):
    """A call with one argument becomes the argument."""

    def fits(node):
        return isinstance(node, ast.Call) and len(node.args) == 1

    slot = draw.place(slots(tree, fits), slot_line)
    if slot is None:
        return False
    put(slot, get(slot).args[0])
    return True


@operator
def add_base_case(tree, draw):
    """A function returns something plain at once where a parameter is empty or 0."""
    functions = [f for f in nodes(tree, ast.FunctionDef) if f.args.args]
    if not functions:
        return False
    function = draw.choice(functions)
    name = draw.choice(function.args.args).arg
    value = draw.choice(["0", "1", "[]", "''", "None", "False", "True", name])
    function.body.insert(0, ast.parse(f"if not {name}:\n    return {value}").body[0])
    return True


# From here on: of little use, or harmful.


@operator
def double_number(tree, draw):
    """A whole number becomes twice as large."""
    number = draw.place([n for n in nodes(tree, ast.Constant) if type(n.value) is int])
    if number is None:
        return False
    number.value *= 2
    return True


@operator
def upper_text(tree, draw):
    """A string becomes upper case."""
    text = draw.place([n for n in nodes(tree, ast.Constant) if isinstance(n.value, str)])
    if text is None:
        return False
    text.value = text.value.upper()
    return True


@operator
def return_early(tree, draw):
    """A function returns one of its variables before a statement."""
    place = draw.place(statements(tree), line_of)
    names = nodes(tree, ast.Name)
    if place is None or not names:
        return False
    place[0].insert(place[1], ast.Return(value=ast.Name(draw.choice(names).id, ast.Load())))
    return True


@operator
def empty_loop(tree, draw):
    """A loop does nothing."""
    loop = draw.place(nodes(tree, ast.For, ast.While))
    if loop is None:
        return False
    loop.body = [ast.Pass()]
    return True


@operator
def empty_function(tree, draw):
    """A function does nothing."""
    function = draw.place(nodes(tree, ast.FunctionDef))
    if function is None:
        return False
    function.body = [ast.Pass()]
    return True


@operator
def rename_variable(tree, draw):
    """A variable gets another name everywhere, which changes nothing."""
    names = sorted({n.id for n in nodes(tree, ast.Name) if isinstance(n.ctx, ast.Store)})
    if not names:
        return False
    old = draw.choice(names)
    new = f"{old}_{draw.randrange(100)}"
    for node in nodes(tree, ast.Name):
        if node.id == old:
            node.id = new
    return True


@operator
def compare_with_itself(tree, draw):
    """A comparison compares a thing with itself."""
    place = draw.place(nodes(tree, ast.Compare))
    if place is None:
        return False
    place.comparators[0] = copy(place.left)
    return True
