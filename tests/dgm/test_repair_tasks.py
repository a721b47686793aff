"""The repair tasks: right programs, faults that are faults, splits that share nothing, QuixBugs."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.dgm.repair import faults, quixbugs, quixbugs_adapter, tasks, trial
from selfevolve_jax.dgm.repair.benchmark import Repair, benchmark
from selfevolve_jax.dgm.repair.tasks import Program, apply, programs, transfer_programs
from selfevolve_jax.errors import UserError


def function(name: str):
    return trial.define(programs()[name].source, name)


@pytest.mark.parametrize("name", [*programs(), *transfer_programs()])
def test_a_right_program_passes_all_of_its_cases(name):
    program = {**programs(), **transfer_programs()}[name]
    assert 8 <= len(program.cases) <= 14
    assert set((faults.outcomes(program.source, program) or {}).values()) == {True}


@given(st.lists(st.integers(-9, 9), max_size=8), st.integers(1, 300), st.integers(1, 300))
def test_programs_agree_with_the_standard_library(numbers, a, b):
    assert function("gcd")(a, b) == math.gcd(a, b)
    assert function("power_mod")(a, b, 97) == pow(a, b, 97)
    assert function("bit_count")(a) == a.bit_count()
    assert function("to_base")(a, 16) == f"{a:X}"
    assert function("from_roman")(function("to_roman")(a)) == a
    for name in ("bubble_sort", "insertion_sort", "quicksort"):
        assert function(name)(numbers) == sorted(numbers)
    assert function("selection_sort")(numbers) == sorted(numbers, reverse=True)
    assert math.prod(function("factorise")(a)) == a
    if numbers:
        assert function("median")(numbers) == statistics.median(numbers)
        counts = collections.Counter(numbers)
        assert counts[function("most_common")(numbers)] == max(counts.values())


def test_there_are_enough_and_of_enough_kinds():
    found = tasks.read_faults()
    by_split = collections.Counter(t.task.split for t in benchmark().tasks_with_cases())
    assert len(programs()) >= 40 and len(found) >= 120 and len(transfer_programs()) >= 30
    assert len({fault.kind for fault in found}) >= 8
    assert by_split["train"] >= 60 and by_split["held_out"] >= 60 and by_split["transfer"] >= 30


def test_every_seeded_fault_is_one():
    for fault in tasks.read_faults():
        program = programs()[fault.program]
        assert faults.is_fault(apply(program.source, fault), program), fault


def test_every_bug_made_by_hand_is_one():
    for program in transfer_programs().values():
        assert faults.is_fault(program.faulty, program), program.entry


def test_what_is_no_fault_is_refused():
    program = Program(
        "half",
        "def half(x):\n    return x / 2\n",
        "",
        tuple(tasks.Case([x], x / 2) for x in range(8)),
    )
    equivalent = "def half(x):\n    return 0.5 * x\n"
    hung = "def half(x):\n    while x == x:\n        pass\n"
    fails_one = "def half(x):\n    return 1 if x == 4 else x / 2\n"  # a visible case alone
    fails_two = "def half(x):\n    return 1 if x in (4, 5) else x / 2\n"
    answers = [faults.is_fault(s, program) for s in (equivalent, hung, fails_one, fails_two)]
    assert answers == [False, False, False, True]


REMADE = """
from selfevolve_jax.dgm.repair import faults, tasks
names = sorted(tasks.programs())[:8]
made = faults.choose_all(names)
assert made and made == tasks.read_faults()[: len(made)], "not what is committed"
assert made != faults.choose_all(names, seed=1), "no matter what the seed is"
"""


def test_the_committed_faults_are_what_the_generator_makes():
    """In a process of its own: the clock that stops a candidate rings in whatever runs then, such as
    pytest's hook for what the collector finds."""
    command = [sys.executable, "-c", REMADE]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_split_is_by_program_and_the_transfer_programs_are_others():
    groups = collections.defaultdict(set)
    for task in benchmark().tasks:
        groups[task.split].add(task.group)
    assert not groups["train"] & groups["held_out"]
    assert not groups["transfer"] & (groups["train"] | groups["held_out"])
    assert abs(len(groups["train"]) - len(groups["held_out"])) <= 1
    sources = {programs()[name].source for name in programs()}
    assert not sources & {p.source for p in transfer_programs().values()}


def test_a_fault_made_for_another_text_is_named():
    fault = tasks.read_faults()[0]
    program = programs()[fault.program]
    moved = dataclasses.replace(fault, was="something else")
    with pytest.raises(UserError, match=rf"{fault.program}.*remake faults.json"):
        apply(program.source, moved)


def test_an_edit_changes_the_text_of_one_place_alone():
    source = "def f(a, b):\n    return (a + b) * 2\n"
    fault = tasks.Fault("f", "arithmetic", (2, 12, 2, 17), "a + b", "a - b")
    assert apply(source, fault) == "def f(a, b):\n    return (a - b) * 2\n"


def test_a_changed_operator_keeps_its_brackets():
    source = "def f(a, b, c):\n    return c - a * b\n"
    program = Program("f", source, "", ())
    changed = {apply(source, x) for x in faults.faults("f", program) if x.kind == "arithmetic"}
    assert "def f(a, b, c):\n    return c - (a + b)\n" in changed  # and not c - a + b
    assert "def f(a, b, c):\n    return c + a * b\n" in changed


def test_descriptions_show_visible_cases_alone():
    bench = benchmark()
    for t in bench.tasks_with_cases():
        said = bench.describe(t.task)
        assert t.source.strip() in said
        shown = [
            line
            for line in said.splitlines()
            if line.startswith(f"    {t.entry}(") and " == " in line
        ]
        assert len(shown) == len(t.visible) == (len(t.cases) + 1) // 2


def test_ids_are_unique_and_a_budget_is_checked():
    two = tasks.seeded()[:1] * 2
    with pytest.raises(UserError, match="one id"):
        Repair(two)
    with pytest.raises(UserError, match="budget of 1"):
        Repair([], budget=1)


# Right programs of our own for QuixBugs' nine that take nodes, to check the adapter and its cases.
RIGHT = {
    "breadth_first_search": """
def breadth_first_search(start, goal):
    seen, edge = {start}, [start]
    while edge:
        node = edge.pop(0)
        if node is goal:
            return True
        for other in node.successors:
            if other not in seen:
                seen.add(other)
                edge.append(other)
    return False
""",
    "detect_cycle": """
def detect_cycle(node):
    seen = set()
    while node is not None and node not in seen:
        seen.add(node)
        node = node.successor
    return node is not None
""",
    "minimum_spanning_tree": """
def minimum_spanning_tree(weights):
    group = {n: {n} for edge in weights for n in edge}
    tree = set()
    for a, b in sorted(weights, key=weights.get):
        if b not in group[a]:
            tree.add((a, b))
            group[a] |= group[b]
            for n in group[a]:
                group[n] = group[a]
    return tree
""",
    "reverse_linked_list": """
def reverse_linked_list(node):
    before = None
    while node:
        node.successor, before, node = before, node, node.successor
    return before
""",
    "shortest_path_length": """
def shortest_path_length(lengths, start, goal):
    best = {start: 0}
    for _ in lengths:
        for (a, b), length in lengths.items():
            if a in best:
                best[b] = min(best.get(b, float("inf")), best[a] + length)
    return best.get(goal, float("inf"))
""",
    "shortest_path_lengths": """
def shortest_path_lengths(n, lengths):
    d = {(i, j): 0 if i == j else lengths.get((i, j), float("inf")) for i in range(n) for j in range(n)}
    for k in range(n):
        for i in range(n):
            for j in range(n):
                d[i, j] = min(d[i, j], d[i, k] + d[k, j])
    return d
""",
    "shortest_paths": """
def shortest_paths(source, weights):
    best = {n: float("inf") for edge in weights for n in edge}
    best[source] = 0
    for _ in best:
        for (a, b), w in weights.items():
            best[b] = min(best[b], best[a] + w)
    return best
""",
    "topological_ordering": """
def topological_ordering(nodes):
    done = []
    while len(done) < len(nodes):
        for node in nodes:
            if node not in done and all(n in done for n in node.incoming_nodes):
                done.append(node)
                break
    return done
""",
}
RIGHT["depth_first_search"] = RIGHT["breadth_first_search"].replace("breadth", "depth")


@pytest.mark.parametrize("name", sorted(quixbugs_adapter.CASES))
def test_the_adapter_calls_right_programs_and_its_cases_hold(name):
    made = trial.define(RIGHT[name], name)
    for arguments, expected in quixbugs_adapter.CASES[name]:
        assert trial.same(quixbugs_adapter.adapt(name, made, *arguments), expected), arguments


def test_the_adapter_makes_plain_values():
    assert quixbugs_adapter.adapt("flatten", lambda n: iter(range(n)), 3) == [0, 1, 2]
    assert quixbugs_adapter.adapt("hanoi", lambda: [(1, 2), (2, 3)]) == [[1, 2], [2, 3]]


def checkout(root, names):
    """A folder in QuixBugs' layout with programs of our own: each adds up, its bug subtracts."""
    for part in ("python_programs", "correct_python_programs", "json_testcases"):
        (root / part).mkdir(parents=True)
    for name in names:
        head = f'"""What it does."""\n\ndef {name}(a, b):\n    return a '
        tail = ' b\n\n"""\nThe answer is in here.\n"""\n'
        (root / "python_programs" / f"{name}.py").write_text(head + "-" + tail)
        (root / "correct_python_programs" / f"{name}.py").write_text(head + "+" + tail)
        cases = "[[1, 2], 3]\n\n[[0.5, 0.25], 0.75]\n[[4, 4], 8]\n"
        (root / "json_testcases" / f"{name}.json").write_text(cases)


def test_quixbugs_is_read_from_a_folder_and_what_is_missing_is_named(tmp_path):
    checkout(tmp_path, ["gcd", "sqrt", "wrap", "kth"])
    (tmp_path / "json_testcases" / "kth.json").write_text("[[1], \n")
    (tmp_path / "correct_python_programs" / "wrap.py").unlink()
    found, left_out = quixbugs.read(str(tmp_path))
    assert [t.task.id for t in found] == ["quixbugs-gcd", "quixbugs-sqrt"]
    assert {t.task.split for t in found} == {"transfer"}
    assert found[0].source == "def gcd(a, b):\n    return a - b\n"  # no text that tells
    assert found[0].fixed == "def gcd(a, b):\n    return a + b\n"
    assert [c.arguments for c in found[0].cases.values()] == [[1, 2], [0.5, 0.25], [4, 4]]
    assert [c.tolerance for c in found[0].cases.values()] == [0, 0, 0]
    assert [c.tolerance for c in found[1].cases.values()] == [2, 0.25, 4]
    assert len(quixbugs.NAMES) == 40 and len(left_out) == 38
    assert "wrap.py" in left_out["quixbugs-wrap"] and "kth" in "".join(left_out)
    assert left_out["quixbugs-kth"].startswith("JSONDecodeError")
    bench = benchmark(quixbugs=str(tmp_path))
    assert bench.excluded == left_out and "quixbugs-gcd" in {t.id for t in bench.tasks}


def test_cases_for_which_the_right_program_is_too_slow_are_left_out(tmp_path):
    """On the real checkout all 40 right programs then pass, and no faulty one (done by hand)."""
    checkout(tmp_path, ["levenshtein"])
    rows = [
        ["rosettacode", "raisethysword"],
        ["ab", "b"],
        ["amanaplanacanalpanama", "doc"],
        ["", "b"],
    ]
    text = "".join(json.dumps([row, 1]) + "\n" for row in rows)
    (tmp_path / "json_testcases" / "levenshtein.json").write_text(text)
    found, _ = quixbugs.read(str(tmp_path))
    assert [c.arguments for c in found[0].cases.values()] == [["ab", "b"], ["", "b"]]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no folder python_programs.*git clone"):
        quixbugs.read(str(tmp_path))
