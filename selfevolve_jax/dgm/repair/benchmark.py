"""Program repair as a benchmark: an agent's repair.py mends a faulty function, and fresh eyes judge it.

Two sandboxes a task. In the first the agent has its own files, the faulty source, the visible cases and
a test runner that counts its candidates (trial.py); it leaves answer.py. In the second the answer is
called on the inputs of all cases. The expected values stay on the host, which compares: so nothing that
an answer can do in there (exit, print, patch the runner, write to its report) is worth more than the
values that it gives, and what gives the right values of the hidden cases is right.
"""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfevolve_jax.dgm.contract import Models, Result, Task, Tree, run_job
from selfevolve_jax.dgm.repair import tasks, trial
from selfevolve_jax.dgm.repair.quixbugs import read as read_quixbugs
from selfevolve_jax.dgm.repair.tasks import Case, RepairTask
from selfevolve_jax.dgm.sandbox.job import WORK, Box, Job, Limits, Outcome
from selfevolve_jax.errors import UserError

BUDGET = 100  # candidates
KEPT = 4_000  # characters of an answer, and of a log
PYTHON = ("python3", "-I", "-S", "-B")
REPAIR_LIMITS = Limits(
    wall_s=30, cpu_s=3, memory_mib=512, processes=8, file_mib=1, work_mib=16, work_files=500,
    output_bytes=16 << 10, collected_bytes=64 << 10, collected_files=4,
)  # fmt: skip
GRADE_LIMITS = Limits(
    wall_s=30, cpu_s=3, memory_mib=512, processes=8, file_mib=1, work_mib=16, work_files=500,
    output_bytes=256 << 10, collected_bytes=0, collected_files=0,
)  # fmt: skip
_TRIAL = Path(trial.__file__).read_bytes()


class Repair:
    """The benchmark. budget: candidates an agent may try on one task.

    Result.partial is the share of the cases the faulty program fails that the answer passes, by trusted
    grading; 0 where it fails a case that the faulty program passes. tests has all cases by name,
    visible and hidden alike; a task is solved where it passes all."""

    name = "repair"

    def __init__(
        self,
        repair_tasks: Sequence[RepairTask],
        budget: int = BUDGET,
        excluded: Mapping[str, str] | None = None,
    ) -> None:
        if budget < 2:
            raise UserError(f"A repair budget of {budget} candidates: give 2 or more.")
        self._by_id = {t.task.id: t for t in repair_tasks}
        if len(self._by_id) < len(repair_tasks):
            raise UserError("Two repair tasks have one id. Fix: name them apart.")
        self.budget = budget
        self.tasks = tuple(t.task for t in repair_tasks)
        self.excluded = dict(excluded or {})
        self._at_first: dict[str, dict[str, bool]] = {}
        self._lock = threading.Lock()

    def tasks_with_cases(self) -> list[RepairTask]:
        """All of a task: what no agent may see, too."""
        return list(self._by_id.values())

    def describe(self, task: Task) -> str:
        """The faulty source and the visible cases."""
        t = self._by_id[task.id]
        cases = [c for name, c in t.cases.items() if name in t.visible]
        lines = [
            f"    {t.entry}({', '.join(map(repr, c.arguments))}) == {c.expected!r}" for c in cases
        ]
        return f"{t.source.rstrip()}\n\nIt should hold that\n" + "\n".join(lines) + "\n"

    def evaluate(
        self, agent: Tree, task: Task, seed: int, box: Box, models: Models | None = None
    ) -> Result:
        t = self._by_id[task.id]
        attempt = run_job(box, self.repair_job(agent, t, seed))
        log = _text(attempt.stdout) + _text(attempt.stderr)
        answer = attempt.files.get("answer.py")
        spent = {"log": log[-KEPT:], "cpu_s": attempt.cpu_s, "wall_s": attempt.wall_s}
        ended = _ended(attempt)
        if answer is None:
            why = f"no answer: {ended}" if ended else "no answer"
            return Result(False, 0.0, True, why, tests=dict.fromkeys(t.cases, False), **spent)
        source = _text(answer)
        if unchanged(source, t.source):
            why = "the answer is the faulty program"
            return Result(
                False, 0.0, True, why, source[:KEPT], tests=dict.fromkeys(t.cases, False), **spent
            )
        tests, why, graded = grade(box, t, source)
        spent["cpu_s"] += graded.cpu_s
        spent["wall_s"] += graded.wall_s
        solved = all(tests.values())
        partial = 1.0 if solved else _partial(self.at_first(t, box), tests)
        return Result(
            solved, partial, False, "" if solved else why, source[:KEPT], tests=tests, **spent
        )

    def repair_job(self, agent: Tree, t: RepairTask, seed: int) -> Job:
        """The agent's job on a task. It sees no hidden case, and neither the fixed program nor the kind
        of fault."""
        visible = [
            [c.arguments, c.expected, c.tolerance] for n, c in t.cases.items() if n in t.visible
        ]
        task = {"entry": t.entry, "seed": seed, "budget": self.budget, "cases": visible}
        files = {f"agent/{path}": content for path, content in agent.items()}
        files["task/task.json"] = json.dumps(task).encode()
        files["task/source.py"] = t.source.encode()
        files["task/trial.py"] = _TRIAL
        if t.adapter:
            files["task/adapter.py"] = t.adapter.encode()
        argv = (*PYTHON, f"{WORK}/agent/repair.py", f"{WORK}/task", f"{WORK}/answer.py")
        return Job(argv, files, limits=REPAIR_LIMITS, collect=("answer.py",))

    def at_first(self, t: RepairTask, box: Box) -> dict[str, bool]:
        """Case -> whether the faulty program passes it; graded once, as an answer is."""
        with self._lock:
            known = self._at_first.get(t.task.id)
        if known is None:
            known, _, _ = grade(box, t, t.source)
            with self._lock:
                self._at_first[t.task.id] = known
        return known


def grade(box: Box, t: RepairTask, answer: str) -> tuple[dict[str, bool], str, Outcome]:
    """(case -> passed, why not all, the job's outcome). A report that names a case twice, or one that
    was not asked for, counts for nothing."""
    inputs = {name: case.arguments for name, case in t.cases.items()}
    files = {
        "trial.py": _TRIAL,
        "inputs.json": json.dumps({"entry": t.entry, "inputs": inputs}).encode(),
        "answer.py": answer.encode(),
    }
    if t.adapter:
        files["adapter.py"] = t.adapter.encode()
    outcome = run_job(box, Job((*PYTHON, f"{WORK}/trial.py", WORK), files, limits=GRADE_LIMITS))
    failed = dict.fromkeys(t.cases, False)
    report, broken = read_report(outcome.stdout, set(t.cases))
    if broken:
        return failed, broken, outcome
    tests = {}
    reasons = []
    for name, case in t.cases.items():
        ok, value = report.get(name, (False, _ended(outcome) or "not reported"))
        tests[name] = ok and _same(value, case)
        if not tests[name]:
            reasons.append(f"{name} ({'wrong value' if ok else value})")
    why = f"fails {len(reasons)} of {len(tests)} cases: {', '.join(reasons)}" if reasons else ""
    return tests, why[:500], outcome


def read_report(stdout: bytes, names: set[str]) -> tuple[dict[str, tuple[bool, Any]], str]:
    """(case -> (gave a value, value or reason), "") of a grader's lines, or ({}, what is wrong)."""
    report: dict[str, tuple[bool, Any]] = {}
    for line in stdout.splitlines():
        try:
            name, ok, value = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            return {}, "the report has a line that is none of the grader's"
        if not isinstance(name, str) or name not in names or name in report:
            return {}, "the report names a case twice, or one that was not asked for"
        if ok is True:
            report[name] = (True, value)
        else:
            report[name] = (False, printable(str(value)[:200]))
    return report, ""


def unchanged(answer: str, source: str) -> bool:
    """Whether an answer says the same as the faulty source, layout aside."""
    try:
        return ast.dump(ast.parse(answer)) == ast.dump(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return answer == source


def _partial(before: Mapping[str, bool], after: Mapping[str, bool]) -> float:
    if any(ok and not after[name] for name, ok in before.items()):
        return 0.0
    failed = [name for name, ok in before.items() if not ok]
    return sum(after[name] for name in failed) / len(failed) if failed else 0.0


def _same(value: Any, case: Case) -> bool:
    try:
        return trial.same(value, case.expected, case.tolerance)
    except (RecursionError, OverflowError):
        return False


def _ended(outcome: Outcome) -> str:
    if outcome.ended:
        return f"ended by its limit of {outcome.ended}"
    return f"exit code {outcome.exit_code}" if outcome.exit_code else ""


def _text(data: bytes) -> str:
    return data.decode(errors="replace").replace("\0", "�")


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in text)


def benchmark(budget: int = BUDGET, quixbugs: str | None = None) -> Repair:
    """The benchmark with its seeded and hand-made tasks, and QuixBugs' where a folder is given."""
    found = [*tasks.seeded(), *tasks.transfer()]
    excluded: Mapping[str, str] = {}
    if quixbugs is not None:
        of_quixbugs, excluded = read_quixbugs(quixbugs)
        found += of_quixbugs
    return Repair(found, budget, excluded)
