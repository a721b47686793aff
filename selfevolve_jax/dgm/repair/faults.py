"""Seeds faults into the programs: edits of one place, by class, each shown to be a fault.

    python -m selfevolve_jax.dgm.repair.faults      writes faults.json anew (a minute)

A fault is kept if the faulty program fails a visible case and a hidden one and ends in time on all. The
same seed gives the same file.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator

from selfevolve_jax.dgm import contract
from selfevolve_jax.dgm.repair import trial
from selfevolve_jax.dgm.repair.tasks import FAULTS, Fault, Program, apply, named, programs

SEED = 0
PER_PROGRAM = 3
RARE = {
    "doubled_statement": 3
}  # a third as many: people seldom make them, and the first agent mends them
CPU_S = 0.2  # a faulty program that needs longer for a case does not end, and is no task

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.FloorDiv),
    ast.FloorDiv: (ast.Mult, ast.Mod),
    ast.Div: (ast.FloorDiv, ast.Mult),
    ast.Mod: (ast.FloorDiv,),
}
_CALLS = ("abs", "int", "len", "list", "reversed", "sorted", "str")
_CONFUSED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "list": "sorted",
    "int": "round",
}


def faults(name: str, program: Program) -> Iterator[Fault]:
    """All edits of a program, of all classes, in the order of its text; none is tested."""
    tree = ast.parse(program.source)
    in_f_strings = {
        id(n) for s in ast.walk(tree) if isinstance(s, ast.JoinedStr) for n in ast.walk(s)
    }  # Python 3.11 does not know where these are
    for function in tree.body:
        assert isinstance(function, ast.FunctionDef)
        names = sorted(
            {a.arg for a in function.args.args}
            | {
                n.id
                for n in ast.walk(function)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n.id != "_"
            }
        )
        for node in ast.walk(function):
            if id(node) in in_f_strings:
                continue
            for kind, changed in _changed(node, names):
                if isinstance(node, ast.expr):
                    yield _expression_fault(name, program.source, kind, node, changed)
                elif isinstance(node, ast.AugAssign):
                    yield _fault(name, program.source, kind, node, ast.unparse(changed))
            for field in ("body", "orelse"):
                block = getattr(node, field, None)
                if isinstance(block, list):
                    yield from _statement_faults(name, program.source, block)


def _changed(node: ast.AST, names: list[str]) -> Iterator[tuple[str, ast.AST]]:
    """(class, changed copy) of an expression or an augmented assignment."""

    def with_(**fields: object) -> ast.AST:
        old = {field: getattr(node, field) for field in node._fields}
        return type(node)(**{**old, **fields})

    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for op in _COMPARISONS.get(type(node.ops[0]), ()):
            yield "comparison", with_(ops=[op()])
    if isinstance(node, ast.Constant) and type(node.value) is int:
        for value in (node.value - 1, node.value + 1):
            yield "constant", ast.Constant(value)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        for other in names:
            if other != node.id:
                yield "variable", with_(id=other)
    if isinstance(node, ast.Call) and len(node.args) == 2:
        yield "arguments", with_(args=node.args[::-1])
    if isinstance(node, ast.BinOp | ast.AugAssign):
        for op in _ARITHMETIC.get(type(node.op), ()):
            yield "arithmetic", with_(op=op())
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        one = isinstance(node.right, ast.Constant) and node.right.value == 1
        yield from [("offset", node.left)] if one else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if len(node.args) == 1 and node.func.id in _CALLS:
            yield "missing_call", node.args[0]
        if node.func.id in _CONFUSED:
            yield "function", with_(func=ast.Name(_CONFUSED[node.func.id], ast.Load()))
    if isinstance(node, ast.BoolOp):
        yield "connective", with_(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        for i in range(len(node.values)):
            rest = node.values[:i] + node.values[i + 1 :]
            yield "missing_clause", rest[0] if len(rest) == 1 else with_(values=rest)
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        yield from (("index", with_(slice=moved)) for moved in _moved(node.slice))
    if isinstance(node, ast.Compare | ast.BoolOp) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    ):
        negated = node.operand if isinstance(node, ast.UnaryOp) else ast.UnaryOp(ast.Not(), node)
        yield "negation", negated


def _moved(index: ast.expr) -> Iterator[ast.expr]:
    """An index, or an end of a slice, one off."""

    def one_off(end: ast.expr) -> Iterator[ast.expr]:
        if isinstance(end, ast.BinOp) and isinstance(end.right, ast.Constant):
            yield end.left  # the offset is forgotten
        elif not isinstance(end, ast.Constant | ast.UnaryOp):
            yield ast.BinOp(end, ast.Add(), ast.Constant(1))
            yield ast.BinOp(end, ast.Sub(), ast.Constant(1))

    if not isinstance(index, ast.Slice):
        yield from one_off(index)
        return
    for field in ("lower", "upper"):
        end = getattr(index, field)
        for moved in one_off(end) if end else ():
            ends = {"lower": index.lower, "upper": index.upper, field: moved}
            yield ast.Slice(**ends, step=index.step)


def _expression_fault(name: str, source: str, kind: str, node: ast.expr, changed: ast.AST) -> Fault:
    """The edit that puts `changed` in the place of `node`, in brackets where it needs them."""
    text = ast.unparse(ast.fix_missing_locations(changed))
    plain = _fault(name, source, kind, node, text)
    bracketed = dataclasses.replace(plain, now=f"({text})")
    try:
        same = ast.dump(ast.parse(apply(source, plain))) == ast.dump(
            ast.parse(apply(source, bracketed))
        )
    except SyntaxError:
        same = False
    return plain if same else bracketed


def _fault(name: str, source: str, kind: str, node: ast.expr | ast.stmt, now: str) -> Fault:
    assert node.end_lineno is not None and node.end_col_offset is not None
    span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
    was = ast.get_source_segment(source, node)
    assert was is not None
    return Fault(name, kind, span, was, now)


def _statement_faults(name: str, source: str, block: list[ast.stmt]) -> Iterator[Fault]:
    """A statement that is missing, or there twice, or has changed places with the next."""
    lines = source.splitlines(keepends=True)
    for i, node in enumerate(block):
        assert node.end_lineno is not None
        text = "".join(lines[node.lineno - 1 : node.end_lineno])
        if text.lstrip().startswith("elif"):
            continue
        indent = text[: len(text) - len(text.lstrip())]
        span = (node.lineno, 0, node.end_lineno, len(lines[node.end_lineno - 1]))
        yield Fault(
            *(name, "missing_statement", span, text), "" if len(block) > 1 else indent + "pass\n"
        )
        if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign):
            yield Fault(name, "doubled_statement", span, text, text + text)
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
            now = text.replace("+=", "=", 1)
            yield Fault(name, "assignment", span, text, now)
        if isinstance(node, ast.While | ast.If) and not node.orelse:
            old, new = ("while ", "if ") if isinstance(node, ast.While) else ("if ", "while ")
            yield Fault(name, "if_while", span, text, text.replace(old, new, 1))
        if i + 1 < len(block):
            after = block[i + 1]
            assert after.end_lineno is not None
            both = (node.lineno, 0, after.end_lineno, len(lines[after.end_lineno - 1]))
            second = "".join(lines[after.lineno - 1 : after.end_lineno])
            between = "".join(lines[node.end_lineno : after.lineno - 1])
            yield Fault(
                name, "statement_order", both, text + between + second, second + between + text
            )


def outcomes(source: str, program: Program) -> dict[str, bool] | None:
    """Case -> whether a source passes it, run in this process; None where it does not end."""
    results = {}
    cases, _ = named(program.cases)
    for name, case in cases.items():
        clock = trial.Clock(CPU_S)
        try:
            with clock:
                function = trial.define(source, program.entry)
                value = trial.call(function, json.dumps(case.arguments))
                results[name] = trial.same(value, case.expected, case.tolerance)
        except trial.TooSlow:
            return None
        except Exception:
            results[name] = False
    return results


def is_fault(source: str, program: Program) -> bool:
    """Whether it ends, and fails a visible case and a hidden one."""
    passed = outcomes(source, program)
    if passed is None:
        return False
    _, visible = named(program.cases)
    failed = {name for name, ok in passed.items() if not ok}
    return bool(failed & visible) and bool(failed - visible)


def choose(name: str, seed: int = SEED, counts: Counter[str] | None = None) -> list[Fault]:
    """PER_PROGRAM faults of a program,
    of different classes; those that `counts` has least of come first."""
    counts = Counter() if counts is None else counts
    program = programs()[name]
    draws = contract.draws("faults", seed, name)
    by_kind: dict[str, list[Fault]] = {}
    for fault in dict.fromkeys(faults(name, program)):
        by_kind.setdefault(fault.kind, []).append(fault)
    for found in by_kind.values():
        draws.shuffle(found)
    chosen: list[Fault] = []
    for kind in sorted(
        by_kind, key=lambda kind: (counts[kind] * RARE.get(kind, 1), draws.random())
    ):
        if len(chosen) == PER_PROGRAM:
            break
        for fault in by_kind[kind]:
            if is_fault(apply(program.source, fault), program):
                chosen.append(fault)
                counts[kind] += 1
                break
    return sorted(chosen, key=lambda fault: (fault.span, fault.kind))


def choose_all(names: list[str], seed: int = SEED) -> list[Fault]:
    """The faults of several programs in turn, with the classes in balance."""
    counts: Counter[str] = Counter()
    return [fault for name in names for fault in choose(name, seed, counts)]


def main() -> None:
    from selfevolve_jax import run_dir

    chosen = choose_all(sorted(programs()))
    rows = [json.dumps(dataclasses.asdict(fault)) for fault in chosen]
    run_dir.write_text_atomic(FAULTS, "[\n" + ",\n".join(rows) + "\n]\n")
    for kind, n in Counter(fault.kind for fault in chosen).most_common():
        print(f"{n:4d}  {kind}")
    print(f"{len(chosen):4d}  in {len(programs())} programs")


if __name__ == "__main__":
    main()
