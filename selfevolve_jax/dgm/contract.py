"""What the parts of DGM say to each other: agents as trees, tasks, results, proposals, models."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from selfevolve_jax.dgm.sandbox.job import Box, Job, Outcome, SandboxError

# An agent: relative POSIX path -> content. An agent is all of its files, and no chain of patches.
Tree = Mapping[str, bytes]

# Evolution sees train alone. held_out and transfer are for the first agent and the best, at the end.
Split = Literal["train", "held_out", "transfer"]


class Unavailable(Exception):
    """A model's endpoint or a sandbox failed in a way that says nothing of the agent: the job is leased
    again, and counts for nothing."""


class BudgetSpent(Exception):
    """A budget (dollars, tokens, seconds) ends the run here. The message says which, and its number."""


@dataclass(frozen=True)
class Usage:
    """What models cost: calls, tokens, US dollars. Usage() + Usage() adds up."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            self.dollars + other.dollars,
        )


@dataclass(frozen=True)
class Task:
    """id: unique in its benchmark, of letters, digits, "-", "_" and "."; group: what intervals are
    clustered by and the page sorts by, such as a program or a language."""

    id: str
    split: Split
    group: str


@dataclass(frozen=True)
class Result:
    """An agent's attempt at a task, graded. partial: a share in [0, 1] that a benchmark may define
    (1 where solved). empty: it gave no answer, or changed nothing. reason: why it is not solved, "" if
    it is. answer: the patch or the source. log: the agent's own. tests: each expected test's name ->
    whether it passed. Texts are already cut to a size that may be kept."""

    solved: bool
    partial: float
    empty: bool
    reason: str
    answer: str = ""
    log: str = ""
    tests: Mapping[str, bool] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    cpu_s: float = 0.0
    wall_s: float = 0.0


class Session(Protocol):
    """A gateway's socket for one job: `socket` is a path on the host, for Job.socket."""

    socket: str

    def usage(self) -> Usage: ...


class Models(Protocol):
    """The models of a run, by role ("coding", "diagnosis"). Raises Unavailable or BudgetSpent."""

    def session(self, role: str, purpose: str) -> contextlib.AbstractContextManager[Session]:
        """A socket that speaks the OpenAI protocol to whoever connects from inside a sandbox."""
        ...

    def chat(
        self, role: str, messages: Sequence[Mapping[str, Any]], purpose: str
    ) -> tuple[str, Usage]:
        """One answer's text. purpose: goes to the log of calls, such as "diagnosis of agent 3"."""
        ...


class Benchmark(Protocol):
    """tasks: all of all splits, in an order that the seed of a subset is drawn from. excluded: task or
    group -> why it is not among them, such as a toolchain that is missing."""

    @property
    def name(self) -> str: ...
    @property
    def tasks(self) -> Sequence[Task]: ...
    @property
    def excluded(self) -> Mapping[str, str]: ...

    def evaluate(
        self, agent: Tree, task: Task, seed: int, box: Box, models: Models | None
    ) -> Result:
        """Runs the agent on the task in a sandbox, and grades what it gave in others, of which it may
        need two at once: a box has two slots for each worker. A function of its arguments, except for
        what a model says. Raises Unavailable, BudgetSpent."""
        ...

    def describe(self, task: Task) -> str:
        """The task as the agent sees it, for a diagnosis: without private tests or solution."""
        ...


@dataclass(frozen=True)
class Parent:
    """Whom a child is made from. maker: the agent whose code makes the child: the parent's own tree, or
    the first agent's in the ablation without self-improvement. attempts: the parent's (task, result) on
    train, in task order, with the results' texts."""

    id: int
    tree: Tree
    maker: Tree
    attempts: Sequence[tuple[Task, Result]]


@dataclass(frozen=True)
class Proposal:
    """tree: the child, None where none came of it and `reason` says why. entry: what it set out from
    (a task's id, "empty patches", …). diagnosis: what is wrong and what to change, as text. raw: a
    model's answers as they came. log: of the self-modification. flags: what the hacking check found."""

    tree: Tree | None
    reason: str
    entry: str = ""
    diagnosis: str = ""
    raw: str = ""
    log: str = ""
    flags: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)


class Proposer(Protocol):
    def propose(self, parent: Parent, seed: int, box: Box, models: Models | None) -> Proposal:
        """A child of parent. A function of its arguments, except for what a model says. Raises
        Unavailable, BudgetSpent."""
        ...


def run_job(box: Box, job: Job) -> Outcome:
    """box.run, but a sandbox that failed by itself is Unavailable: the job is leased again."""
    try:
        return box.run(job)
    except SandboxError as error:
        raise Unavailable(f"the sandbox failed: {error}") from error


def seed_of(*parts: object) -> int:
    """A seed of 63 bits for (run's seed, purpose, …): the same on every machine and Python."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def draws(*parts: object) -> random.Random:
    """A stream of random numbers of its own for (run's seed, purpose, …)."""
    return random.Random(seed_of(*parts))
