"""QuixBugs (Lin et al., 2017; jkoppel/QuixBugs), 40 small Python programs with a bug of one line each,
as tasks of the transfer split. It is read from a checkout that the user gives; none of it is shipped.

    python_programs/NAME.py  correct_python_programs/NAME.py  json_testcases/NAME.json

json_testcases has a case a line, [input, output]. The nine programs on graphs and linked lists have
none there; their cases are ours, in quixbugs_adapter.py, which builds what these programs take.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

from selfevolve_jax.dgm.repair import quixbugs_adapter
from selfevolve_jax.dgm.repair.tasks import Case, Program, RepairTask, make
from selfevolve_jax.errors import UserError

NAMES = (
    "bitcount", "breadth_first_search", "bucketsort", "depth_first_search", "detect_cycle",
    "find_first_in_sorted", "find_in_sorted", "flatten", "gcd", "get_factors", "hanoi",
    "is_valid_parenthesization", "kheapsort", "knapsack", "kth", "lcs_length", "levenshtein", "lis",
    "longest_common_subsequence", "max_sublist_sum", "mergesort", "minimum_spanning_tree",
    "next_palindrome", "next_permutation", "pascal", "possible_change", "powerset", "quicksort",
    "reverse_linked_list", "rpn_eval", "shortest_path_length", "shortest_path_lengths",
    "shortest_paths", "shunting_yard", "sieve", "sqrt", "subsequences", "to_base",
    "topological_ordering", "wrap",
)  # fmt: skip

# First arguments of cases for which the right programs, which are slow, need more than the 20 ms that a
# case has; the checkout's own tests skip two of them.
TOO_SLOW = {
    "knapsack": (6404180,),
    "levenshtein": ("rosettacode", "amanaplanacanalpanama"),
    "longest_common_subsequence": ("thisisatest",),
}


def read(folder: str) -> tuple[list[RepairTask], dict[str, str]]:
    """(tasks, what is left out: id -> which file is missing or unreadable). UserError where the folder
    is no checkout."""
    root = Path(folder)
    for part in ("python_programs", "correct_python_programs", "json_testcases"):
        if not (root / part).is_dir():
            raise UserError(
                f"{folder} is no checkout of QuixBugs: it has no folder {part}. "
                "Fix: give the folder that git clone https://github.com/jkoppel/QuixBugs makes."
            )
    adapter = Path(quixbugs_adapter.__file__).read_text(encoding="utf-8")
    found, left_out = [], {}
    for name in NAMES:
        id = f"quixbugs-{name}"
        try:
            program = _program(root, name)
        except (OSError, ValueError, SyntaxError) as error:
            left_out[id] = f"{type(error).__name__}: {error}"[:300]
            continue
        task = make(id, "transfer", id, program, program.faulty, "QuixBugs")
        found.append(dataclasses.replace(task, adapter=adapter))
    return found, left_out


def _program(root: Path, name: str) -> Program:
    if name in quixbugs_adapter.CASES:
        rows = quixbugs_adapter.CASES[name]
    else:
        text = (root / "json_testcases" / f"{name}.json").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    cases = []
    for arguments, expected in rows:
        arguments = arguments if isinstance(arguments, list) else [arguments]
        if arguments[0] in TOO_SLOW.get(name, ()):
            continue
        cases.append(Case(arguments, expected, arguments[-1] if name == "sqrt" else 0.0))
    if len(cases) < 2:
        raise ValueError(
            f"{name} has {len(cases)} cases: one to see and one to grade are the least"
        )
    return Program(
        name,
        _code(root / "correct_python_programs" / f"{name}.py"),
        _code(root / "python_programs" / f"{name}.py"),
        tuple(cases),
    )


def _code(path: Path) -> str:
    """A file's code without the texts that stand at its top or end: they say what is right."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    return ast.unparse(tree) + "\n"
