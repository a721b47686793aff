"""The first agent, its donors and its making of children, in this process."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest

from selfevolve_jax.dgm.repair import agent as agent_package
from selfevolve_jax.dgm.repair.agent import evolve, tools
from selfevolve_jax.dgm.repair.proposer import donor_library, first_agent
from selfevolve_jax.dgm.repair.tasks import programs

FILES = {name: data.decode() for name, data in first_agent().items()}
DONORS = {name: data.decode() for name, data in donor_library().items()}
OPERATORS = importlib.import_module("selfevolve_jax.dgm.repair.donors.operators")
NAMES = list(evolve.functions(DONORS["operators.py"], "operator"))


def test_the_agent_and_the_donors_need_the_standard_library_alone():
    own = {"tools", "operators", "searches", "trial"}
    for name, text in FILES.items():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    modules = (
                        [node.module or ""]
                        if isinstance(node, ast.ImportFrom)
                        else [a.name for a in node.names]
                    )
                    assert all(m in own or m in sys.stdlib_module_names for m in modules)
    assert Path(next(iter(agent_package.__path__))).name == "agent"


def test_the_first_agent_deletes_and_copies_statements_and_no_more():
    assert list(evolve.functions(FILES["operators.py"], "operator")) == [
        "delete_statement",
        "copy_statement",
    ]
    policy = json.loads(FILES["policy.json"])
    assert set(policy["operators"]) == {"delete_statement", "copy_statement"}
    assert len(NAMES) >= 14 and not set(NAMES) & set(policy["operators"])


def test_a_donors_names_are_all_in_the_agents_operators():
    """A transplanted function finds what it uses: the names that both files import from tools."""

    def imported(text):
        return {
            alias.name
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    assert imported(DONORS["operators.py"]) == imported(FILES["operators.py"])


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_changes_programs_and_gives_python(name):
    applied = 0
    for i, program in enumerate(programs().values()):
        tree = ast.parse(program.source)
        before = ast.unparse(tree)
        if tools.OPERATORS[name](tree, tools.Draw(i)):
            after = ast.unparse(ast.fix_missing_locations(tree))
            applied += after != before
            try:
                compile(after, "x", "exec")
            except SyntaxError as error:  # what may come of an expression put anywhere
                assert "assign" in str(error) or "expression" in str(error), error
        else:
            assert ast.unparse(tree) == before  # it says that it did nothing
    assert applied > 0


@pytest.mark.parametrize(
    ("name", "before", "possible"),
    [
        ("nudge_number", "return x + 3", {"return x + 2", "return x + 4"}),
        ("negate_condition", "return 1 if x else 2", {"return 1 if not x else 2"}),
        ("swap_operands", "return x - 3", {"return 3 - x"}),
        ("drop_offset", "return g(x - 1)", {"return g(x)"}),
        ("drop_not", "return not x", {"return x"}),
        ("swap_arguments", "return g(x, 1)", {"return g(1, x)"}),
        ("change_connective", "return x and y", {"return x or y"}),
        ("drop_clause", "return x and y", {"return x", "return y"}),
        ("change_comparison", "return x in y", {"return x not in y"}),
        ("nudge_index", "return x[y]", {"return x[y + 1]", "return x[y - 1]"}),
        (
            *("nudge_index", "return x[1:]"),
            {"return x[1 + 1:]", "return x[1 - 1:]", "return x[:]", "return x[1:-1]"},
        ),
        ("swap_statements", "x = 1\n    y = 2", {"y = 2\n    x = 1"}),
        ("change_function", "return min(x, y)", {"return max(x, y)"}),
        ("change_assignment", "x += y", {"x = y"}),
    ],
)  # fmt: skip
def test_operators_by_hand(name, before, possible):
    head = "def f(x, y):\n    "
    seen = set()
    for seed in range(40):
        tree = ast.parse(head + before)
        assert tools.OPERATORS[name](tree, tools.Draw(seed))
        seen.add(ast.unparse(tree).removeprefix(head))
    assert seen == possible


def test_places_are_drawn_by_heat():
    tree = ast.parse("a = 1\nb = 2\nc = 3\n")
    draw = tools.Draw(0)
    draw.heat = {2: 1.0}
    drawn = [draw.place(tree.body).lineno for _ in range(400)]
    # weights 0.05, 1.05, 0.05: 91% of 400, give or take four standard deviations
    assert abs(drawn.count(2) / 400 - 1.05 / 1.15) < 0.06


WEIGHTS = json.loads(FILES["policy.json"])["mutation"]


def children(donors, n=150, files=FILES, weights=WEIGHTS):
    return [evolve.child(files, donors, weights, seed) for seed in range(n)]


def test_the_same_seed_makes_the_same_child_and_others_make_others():
    assert children(DONORS, 30) == children(DONORS, 30)
    assert len({json.dumps(files, sort_keys=True) for files, _ in children(DONORS)}) > 40


def test_a_child_differs_from_its_parent_and_its_policy_fits_its_operators():
    kinds = set()
    for files, said in children(DONORS):
        assert files is not None and files != FILES
        kinds.add(said.split()[0])
        if not said.startswith("spliced"):
            for name, text in files.items():
                if name.endswith(".py"):
                    compile(text, name, "exec")
            policy = json.loads(files["policy.json"])
            operators = evolve.functions(files["operators.py"], "operator")
            assert set(policy["operators"]) == set(operators)
            assert policy["search"] in evolve.functions(files["searches.py"], "search")
    assert kinds == {"transplanted", "swapped", "removed", "weight", "spliced"}


def test_without_donors_a_child_is_made_of_its_parents_own_code():
    for files, said in children(None):
        assert not said.startswith(("transplanted", "swapped"))  # there is one search policy only
        assert files is not None
        operators = evolve.functions(files["operators.py"], "operator")
        assert set(operators) <= {"delete_statement", "copy_statement"}


def test_a_removed_operator_can_be_had_again_and_not_the_last_one():
    files, _ = next(c for c in children(DONORS) if c[1].startswith("removed"))
    assert len(evolve.functions(files["operators.py"], "operator")) == 1
    assert not any(said.startswith("removed") for _, said in children(DONORS, files=files))


def test_the_kind_of_change_is_drawn_by_the_weights_given():
    weights = dict.fromkeys(WEIGHTS, 0.0) | {"remove": 1.0}
    assert all(said.startswith("removed") for _, said in children(DONORS, 20, weights=weights))
