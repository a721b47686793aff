"""The repair tasks: faulty Python functions with cases, from the programs of this folder.

    programs/NAME.py    a right program and its CASES: [([argument, …], result), …]
    faults.json         the faults that faults.py seeded into them: train and held_out, by program
    transfer/NAME.py    bugs made by hand: the right program, FAULTY, CASES

A source is given without its module docstring, so that a function's name is all it says of itself.
Every second case is visible to an agent; the others are for grading alone.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from selfevolve_jax.dgm.contract import Split, Task
from selfevolve_jax.errors import UserError

FOLDER = Path(__file__).parent
FAULTS = FOLDER / "faults.json"


@dataclass(frozen=True)
class Case:
    """Plain values, as JSON has them. tolerance: by how much a number may be off."""

    arguments: list[Any]
    expected: Any
    tolerance: float = 0.0


@dataclass(frozen=True)
class Program:
    """entry: the function that the cases call. faulty: "" for a program that faults are seeded into."""

    entry: str
    source: str
    faulty: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Fault:
    """One edit of a program's source. span: first line, column, last line, column past the end, as ast
    counts them; was: the text there; now: what it becomes. kind: the class of fault."""

    program: str
    kind: str
    span: tuple[int, int, int, int]
    was: str
    now: str


@dataclass(frozen=True)
class RepairTask:
    """task: its public side; entry, source: the faulty program; fixed: the right one; cases: by name,
    and visible: the names of those an agent may see; kind: the class of fault; adapter: source of a
    module whose `adapt` calls the function, for one that takes more than plain values (trial.py)."""

    task: Task
    entry: str
    source: str
    fixed: str
    cases: dict[str, Case]
    visible: frozenset[str]
    kind: str
    adapter: str = ""


def read_program(path: Path) -> Program:
    """A program file of this folder, read without running it."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines(keepends=True)
    values = {
        node.targets[0].id: node
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    source = "".join(lines[functions[0].lineno - 1 : functions[-1].end_lineno])
    cases = ast.literal_eval(values["CASES"].value)
    faulty = ast.literal_eval(values["FAULTY"].value) if "FAULTY" in values else ""
    return Program(
        path.stem,
        source,
        faulty.lstrip("\n"),
        tuple(Case(list(a), expected) for a, expected in cases),
    )


@cache
def programs() -> dict[str, Program]:
    """The programs that faults are seeded into, by name."""
    return {path.stem: read_program(path) for path in sorted((FOLDER / "programs").glob("*.py"))}


@cache
def transfer_programs() -> dict[str, Program]:
    return {path.stem: read_program(path) for path in sorted((FOLDER / "transfer").glob("*.py"))}


def split_of(names: Sequence[str]) -> dict[str, Literal["train", "held_out"]]:
    """Half of the programs, by a hash of their names, to train on; the others held out."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    half = len(ordered) // 2
    return {name: "train" if i < half else "held_out" for i, name in enumerate(ordered)}


def apply(source: str, fault: Fault) -> str:
    """The faulty source. UserError where the text is not what the fault was made for."""
    lines = source.splitlines(keepends=True)
    first, start, last, end = fault.span
    ahead = "".join(lines[: first - 1]) + lines[first - 1][:start]
    behind = lines[last - 1][end:] + "".join(lines[last:])
    was = source[len(ahead) : len(source) - len(behind)]
    if was != fault.was:
        raise UserError(
            f"The fault {fault.kind} of {fault.program} was made for the text {fault.was!r}, but "
            f"there is {was!r}. Fix: remake {FAULTS.name} by python -m selfevolve_jax.dgm.repair.faults"
        )
    return ahead + fault.now + behind


def read_faults(path: Path = FAULTS) -> list[Fault]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Fault(**{**row, "span": tuple(row["span"])}) for row in rows]


def named(cases: Sequence[Case]) -> tuple[dict[str, Case], frozenset[str]]:
    """Cases by name, and the names of the visible ones: every second, from the first."""
    by_name = {f"case-{i:02d}": case for i, case in enumerate(cases)}
    return by_name, frozenset(list(by_name)[::2])


def make(id: str, split: Split, group: str, program: Program, faulty: str, kind: str) -> RepairTask:
    cases, visible = named(program.cases)
    return RepairTask(
        Task(id, split, group), program.entry, faulty, program.source, cases, visible, kind
    )


def seeded() -> list[RepairTask]:
    """The tasks of train and held_out."""
    split = split_of(list(programs()))
    counts: dict[str, int] = {}
    made = []
    for fault in read_faults():
        name = f"{fault.program}-{fault.kind}"
        counts[name] = counts.get(name, 0) + 1
        program = programs()[fault.program]
        made.append(
            make(
                *(f"{name}-{counts[name]}", split[fault.program], fault.program),
                *(program, apply(program.source, fault), fault.kind),
            )
        )
    return made


def transfer() -> list[RepairTask]:
    """The bugs made by hand."""
    return [
        make(f"hand-{name}", "transfer", name, program, program.faulty, "by hand")
        for name, program in transfer_programs().items()
    ]
