"""Grading without a sandbox: equality, the report, partial credit; and what a job may see."""

from __future__ import annotations

import json

import pytest

from selfevolve_jax.dgm.contract import Parent, Unavailable
from selfevolve_jax.dgm.repair import tasks, trial
from selfevolve_jax.dgm.repair.benchmark import Repair, benchmark, read_report, unchanged
from selfevolve_jax.dgm.repair.proposer import Genetic, donor_library, first_agent
from selfevolve_jax.dgm.sandbox.job import Outcome, SandboxError


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        (1, 1, True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        (0.1 + 0.2, 0.3, True),
        (0.3001, 0.3, False),
        (2.0, 2, True),
        (10**400, 1.5, False),
        (1.5, 10**400, False),
        ("1", 1, False),
        (None, None, True),
        (None, 0, False),
        ([1, [2.0]], [1, [2]], True),
        ([1], [1, 2], False),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (float("nan"), 1.0, False),
        (float("inf"), float("inf"), True),
    ],
)
def test_plain_values_are_compared(value, expected, equal):
    assert trial.same(value, expected) is equal


def test_a_tolerance_holds_for_numbers():
    assert trial.same(1.3, 1.25, 0.1) and not trial.same(1.4, 1.25, 0.1)


def test_a_report_must_name_what_was_asked_and_once():
    good = b'["a", true, [1]]\n["b", false, "too slow"]\n'
    assert read_report(good, {"a", "b", "c"}) == ({"a": (True, [1]), "b": (False, "too slow")}, "")
    for forged in (
        good + b'["a", true, 2]\n',
        good + b'["z", true, 2]\n',
        b"PASSED\n" + good,
        b'["a", true]\n',
        b"[[], true, 1]\n",
        b"\xff\n",
        b"[" * 100_000,
    ):
        report, why = read_report(forged, {"a", "b", "c"})
        assert report == {} and why.startswith("the report ")


def test_an_answer_that_says_the_same_is_unchanged():
    source = "def f(x):\n    return x\n"
    assert unchanged("def f(x):  # mended\n\n    return (x)\n", source)
    assert not unchanged("def f(x):\n    return -x\n", source)
    assert not unchanged("def f(x:\n", source)
    assert not unchanged("\0", source)


class Said:
    """A box that plays recorded outcomes and keeps the jobs."""

    name, unenforced = "said", ()

    def __init__(self, *outcomes):
        self.outcomes, self.jobs = list(outcomes), []

    def run(self, job):
        self.jobs.append(job)
        said = self.outcomes.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    def close(self):
        pass


def outcome(stdout=b"", files=None, code: int | None = 0, ended=""):
    return Outcome(code, ended, stdout, b"", False, files or {}, (), 0.5, 0.25)


def report(values):
    return outcome("".join(json.dumps([n, True, v]) + "\n" for n, v in values.items()).encode())


FAULTY = "def double(x):\n    return x * x\n"  # right for 0 and 2
CASES = (tasks.Case([0], 0), tasks.Case([2], 4), tasks.Case([3], 6), tasks.Case([4], 8))
TASK = tasks.make(
    *("t", "train", "g", tasks.Program("double", "def double(x):\n    return 2 * x\n", "", CASES)),
    *(FAULTY, "arithmetic"),
)
AT_FIRST = {"case-00": 0, "case-01": 4, "case-02": 9, "case-03": 16}


@pytest.mark.parametrize(
    ("values", "solved", "partial", "reason"),
    [
        ([0, 4, 6, 8], True, 1.0, ""),
        ([0, 4, 6, 16], False, 0.5, "fails 1 of 4 cases: case-03 (wrong value)"),
        (
            [0, 4, 9, 16],
            False,
            0.0,
            "fails 2 of 4 cases: case-02 (wrong value), case-03 (wrong value)",
        ),
        ([1, 4, 6, 8], False, 0.0, "fails 1 of 4 cases: case-00 (wrong value)"),  # it broke one
        ([0, 4, 6], False, 0.5, "fails 1 of 4 cases: case-03 (not reported)"),
    ],
)
def test_partial_credit_is_the_share_of_failing_cases_mended(values, solved, partial, reason):
    answer = {"answer.py": b"def double(x):\n    return x + 0\n"}
    graded = report(dict(zip(AT_FIRST, values, strict=False)))
    box = Said(outcome(b"log", answer), graded, report(AT_FIRST))
    result = Repair([TASK]).evaluate(first_agent(), TASK.task, 7, box)
    assert (result.solved, result.partial, result.empty) == (solved, partial, False)
    assert result.reason == reason
    assert list(result.tests) == list(AT_FIRST)
    assert result.log == "log" and result.answer == answer["answer.py"].decode()
    assert (result.cpu_s, result.wall_s) == (0.5, 1.0)  # both jobs, without the first look


def test_no_answer_and_an_unchanged_one_are_empty_and_not_graded():
    bench = Repair([TASK])
    for files, said in (
        ({}, "no answer"),
        ({"answer.py": FAULTY.encode()}, "the answer is the faulty"),
    ):
        box = Said(outcome(b"", files))
        result = bench.evaluate(first_agent(), TASK.task, 7, box)
        assert result.empty and not result.solved and result.reason.startswith(said)
        assert len(box.jobs) == 1 and set(result.tests.values()) == {False}
    killed = bench.evaluate(first_agent(), TASK.task, 7, Said(outcome(code=None, ended="CPU time")))
    assert killed.reason == "no answer: ended by its limit of CPU time"


def test_a_sandbox_that_fails_says_nothing_of_the_agent():
    with pytest.raises(Unavailable, match="disk"):
        Repair([TASK]).evaluate(first_agent(), TASK.task, 7, Said(SandboxError("disk")))
    with pytest.raises(Unavailable, match="disk"):
        Genetic().propose(Parent(0, {}, {}, []), 0, Said(SandboxError("disk")))


def test_the_agents_job_sees_no_hidden_case_and_the_graders_no_expected_value():
    answer = {"answer.py": b"def double(x):\n    return x + 0\n"}
    box = Said(outcome(b"", answer), report(AT_FIRST), report(AT_FIRST))
    Repair([TASK], budget=9).evaluate({"repair.py": b"#"}, TASK.task, 7, box)
    first, second, _ = box.jobs
    assert set(first.files) == {
        *("agent/repair.py", "task/task.json", "task/source.py", "task/trial.py"),
    }
    assert json.loads(first.files["task/task.json"]) == {
        "entry": "double",
        "seed": 7,
        "budget": 9,
        "cases": [[[0], 0, 0.0], [[3], 6, 0.0]],
    }
    assert set(second.files) == {"trial.py", "inputs.json", "answer.py"}
    assert json.loads(second.files["inputs.json"]) == {
        "entry": "double",
        "inputs": {"case-00": [0], "case-01": [2], "case-02": [3], "case-03": [4]},
    }
    assert not any(job.mounts or job.env or job.socket for job in box.jobs)


def test_neither_agent_nor_donors_nor_a_childs_making_know_a_program():
    parent = Parent(3, first_agent(), first_agent(), [])
    seen = b"\n".join(Genetic().job(parent, 1).files.values()).decode()
    assert set(Genetic().job(parent, 1).files) == {
        *(f"maker/{name}" for name in first_agent()),
        *(f"parent/{name}" for name in first_agent()),
        *(f"donors/{name}" for name in donor_library()),
    }
    for t in benchmark().tasks_with_cases():
        body = [line.strip() for line in t.fixed.splitlines()[1:] if len(line.strip()) > 24]
        assert not [line for line in body if line in seen]
        assert f"def {t.entry}(" not in seen
