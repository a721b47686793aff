"""A child of a repair agent, made by an agent's own evolve.py in a sandbox.

The code that makes a child is the maker's: the parent's own, which earlier changes may have changed,
or the first agent's in the ablation without self-improvement. The donor library is all that it sees
besides the parent's files: no task, no program, no score.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from selfevolve_jax.dgm.contract import Models, Parent, Proposal, Tree, run_job
from selfevolve_jax.dgm.repair.benchmark import PYTHON, Repair, printable
from selfevolve_jax.dgm.repair.tasks import Case, Program, make
from selfevolve_jax.dgm.sandbox.job import WORK, Box, Job, Limits, Outcome

FOLDER = Path(__file__).parent
MAX_FILES, MAX_BYTES = 32, 128 << 10  # of a child's tree
_PATH = re.compile(r"(\w[\w.-]*/)*\w[\w.-]*", re.ASCII)  # no hidden file, such as git's own
LIMITS = Limits(
    wall_s=30, cpu_s=5, memory_mib=256, processes=8, file_mib=1, work_mib=16, work_files=500,
    output_bytes=16 << 10, collected_bytes=MAX_BYTES + 1, collected_files=MAX_FILES + 1,
)  # fmt: skip

# Compiles all of a child's files, then becomes its repair.py on a task.
_CHECK = """
import os, sys
folder = sys.argv[1]
for name in sorted(os.listdir(folder)):
    if name.endswith(".py"):
        with open(os.path.join(folder, name), "rb") as file:
            compile(file.read(), name, "exec")
os.execvp(sys.argv[2], sys.argv[2:])
"""
_SELF_TEST = Program(
    entry="largest",
    source="def largest(a, b):\n    if a > b:\n        return a\n    return b\n",
    faulty="def largest(a, b):\n    if a < b:\n        return a\n    return b\n",
    cases=(Case([1, 2], 2), Case([5, 4], 5), Case([3, 3], 3)),
)


@cache
def first_agent() -> Tree:
    """The tree that evolution starts from."""
    return _folder("agent")


@cache
def donor_library() -> Tree:
    return _folder("donors")


def _folder(name: str) -> Tree:
    return {
        path.name: path.read_bytes()
        for path in sorted((FOLDER / name).iterdir())
        if path.suffix in (".py", ".json")
    }


class Genetic:
    """The proposer. donors: False is the arm in which an agent has its own code alone to recombine."""

    def __init__(self, donors: bool = True) -> None:
        self._donors = donor_library() if donors else {}

    def propose(
        self, parent: Parent, seed: int, box: Box, models: Models | None = None
    ) -> Proposal:
        """entry is "": what the parent failed at does not inform a change."""
        made = run_job(box, self.job(parent, seed))
        said = _line(made.stdout)
        log = (made.stdout + made.stderr).decode(errors="replace")[-4_000:]

        def none(reason: str) -> Proposal:
            return Proposal(None, reason, "", said, log=log)

        if made.ended or made.exit_code != 0:
            return none(f"evolve.py failed: {_why(made)}")
        child = {path.removeprefix("child/"): data for path, data in made.files.items()}
        if reason := _unfit(child, parent.tree, made):
            return none(reason)
        if reason := self_test(child, box):
            return none(reason)
        return Proposal(child, "", "", said, log=log)

    def job(self, parent: Parent, seed: int) -> Job:
        files = {f"maker/{path}": data for path, data in parent.maker.items()}
        files |= {f"parent/{path}": data for path, data in parent.tree.items()}
        files |= {f"donors/{path}": data for path, data in self._donors.items()}
        donors = f"{WORK}/donors" if self._donors else "-"
        argv = (*PYTHON, f"{WORK}/maker/evolve.py", f"{WORK}/parent", f"{WORK}/child", donors)
        return Job((*argv, str(seed)), files, limits=LIMITS, collect=("child",))


def self_test(child: Tree, box: Box) -> str:
    """Why a child is none, or "": all of its code compiles, and its repair.py ends well on a small
    task. Whether it mends the task is left to evaluation: it may have lost the operators for it."""
    task = make("self-test", "train", "self-test", _SELF_TEST, _SELF_TEST.faulty, "")
    job = Repair((), budget=10).repair_job(child, task, seed=0)
    files = {**job.files, "check.py": _CHECK.encode()}
    argv = (*PYTHON, f"{WORK}/check.py", f"{WORK}/agent", *job.argv)
    outcome = run_job(box, Job(argv, files, limits=job.limits))
    if outcome.ended or outcome.exit_code != 0:
        return f"the child fails its self-test: {_why(outcome)}"
    return ""


def _unfit(child: Tree, parent: Tree, made: Outcome) -> str:
    if made.refused:
        path, why = made.refused[0]
        return f"a file of the child's is refused: {printable(path)[:100]}: {printable(why)[:100]}"
    if not child:
        return f"evolve.py made no child: {_line(made.stdout)}"
    if len(child) > MAX_FILES or sum(map(len, child.values())) > MAX_BYTES:
        return f"the child has more than {MAX_FILES} files or {MAX_BYTES >> 10} KiB"
    for path, data in child.items():
        if not _PATH.fullmatch(path):
            return f"the child has a file with an odd name: {printable(path)[:100]}"
        try:
            data.decode()
        except UnicodeDecodeError:
            return f"the child's file {printable(path)[:100]} is no text"
    if child == parent:
        return "the child is its parent"
    return ""


def _why(outcome: Outcome) -> str:
    if outcome.ended:
        return f"ended by its limit of {outcome.ended}"
    return f"exit code {outcome.exit_code}: {_line(outcome.stderr, -1)}"


def _line(data: bytes, which: int = 0) -> str:
    """The first or the last line of an output, fit to be shown."""
    lines = data.decode(errors="replace").strip().splitlines() or [""]
    return printable(lines[which])[:300]
