"""A coding agent at work: its own code on a repository, in one sandbox job, with a model's socket.

Inside: the agent in /work/agent, the repository in /work/repo, the task in /work/task.md, the log in
/work/agent.log; the command is ENTRY_POINT's, as agent/README.md promises it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfevolve_jax.dgm.contract import Models, Session, Tree, Usage, run_job
from selfevolve_jax.dgm.first_agent import CACHES, ENTRY_POINT
from selfevolve_jax.dgm.sandbox import pythons
from selfevolve_jax.dgm.sandbox.job import WORK, Box, Job, Limits, Outcome

LIMITS = Limits(wall_s=600.0, cpu_s=600.0, memory_mib=1024, processes=128)
KEPT_CHARS = 200_000  # of a log
AGENTS_SHARE = 0.9  # of the wall time: an agent that ends by itself can tidy up


@dataclass(frozen=True)
class Attempted:
    """repo: the repository afterwards (of what was to be collected), None where nothing could be copied
    out. empty: nothing changed. reason: how the run ended if not by itself with exit code 0, and what
    was refused; "" otherwise. An attempt with a reason may be right all the same. refused: (path in the
    repository, why) of what is there but was not copied out."""

    repo: Tree | None
    log: str
    empty: bool
    reason: str
    refused: tuple[tuple[str, str], ...]
    usage: Usage
    cpu_s: float
    wall_s: float


def solve(
    agent: Tree,
    problem: str,
    repo: Tree,
    box: Box,
    models: Models | None,
    limits: Limits = LIMITS,
    role: str = "coding",
    purpose: str = "coding",
    mounts: Mapping[str, str] | None = None,
    collect: Sequence[str] = (".",),
) -> Attempted:
    """Runs the agent on the repository. models: None runs it without a socket. mounts: as in Job.
    collect: paths in the repository that are copied out; caches (CACHES) never are. A repository whose
    builds are large should name its source files. Raises Unavailable where the endpoint or the sandbox
    failed, BudgetSpent."""
    python, pythons_mounts = pythons.python(box)
    command = (*python, f"agent/{ENTRY_POINT}", "--task", f"{WORK}/task.md", "--repo")
    seconds = f"{limits.wall_s * AGENTS_SHARE:g}"
    files = {f"agent/{path}": data for path, data in agent.items()}
    files |= {f"repo/{path}": data for path, data in repo.items()}
    with contextlib.ExitStack() as stack:
        session: Session | None = None
        if models is not None:
            session = stack.enter_context(models.session(role, purpose))
        job = Job(
            argv=(*command, f"{WORK}/repo", "--log", f"{WORK}/agent.log", "--seconds", seconds),
            files={**files, "task.md": problem.encode()},
            mounts={**pythons_mounts, **(mounts or {})},
            env={"PYTHONDONTWRITEBYTECODE": "1"},
            socket=session.socket if session else None,
            limits=limits,
            collect=(*(_inside(path) for path in collect), "agent.log"),
        )
        outcome = run_job(box, job)
        usage = session.usage() if session else Usage()
    before = {path: data for path, data in repo.items() if _collected(path, collect)}
    after = {
        path.removeprefix("repo/"): data
        for path, data in outcome.files.items()
        if path.startswith("repo/") and not _cache(path)
    }
    refused = tuple(
        (path.removeprefix("repo/"), why)
        for path, why in outcome.refused
        if (path in ("repo", "…") or path.startswith("repo/")) and not _cache(path)
    )
    lost = not after and bool(before) and outcome.exit_code is None
    return Attempted(
        repo=None if lost else after,
        log=log_of(outcome),
        empty=lost or (after == before and not refused),
        reason="; ".join(
            (*how_it_ended(outcome), *(f"{path}: {why}" for path, why in refused[:5]))
        ),
        refused=refused,
        usage=usage,
        cpu_s=outcome.cpu_s,
        wall_s=outcome.wall_s,
    )


def how_it_ended(outcome: Outcome) -> list[str]:
    """Nothing where it ended by itself with exit code 0, or one sentence."""
    if outcome.ended:
        return [f"ended by the sandbox after {outcome.wall_s:.0f} s: {outcome.ended}"]
    return [] if outcome.exit_code == 0 else [f"exit code {outcome.exit_code}"]


def log_of(outcome: Outcome) -> str:
    """The agent's log, and what it wrote besides, each cut in its middle."""
    written = {
        "": outcome.files.get("agent.log", b""),
        "[stdout]\n": outcome.stdout,
        "[stderr]\n": outcome.stderr,
    }
    return "\n".join(title + _text(data) for title, data in written.items() if data)


def cut(text: str, limit: int) -> str:
    """text, without its middle where it has more than limit characters."""
    if len(text) <= limit:
        return text
    head, tail = limit // 2, limit - limit // 2
    return f"{text[:head]}\n[{len(text) - limit} characters left out]\n{text[-tail:]}"


def _text(data: bytes) -> str:
    return cut(data.decode("utf-8", "replace"), KEPT_CHARS)


def _inside(path: str) -> str:
    return "repo" if path == "." else f"repo/{path}"


def _collected(path: str, collect: Sequence[str]) -> bool:
    wanted = any(c == "." or path == c or path.startswith(f"{c}/") for c in collect)
    return wanted and not _cache(path)


def _cache(path: str) -> bool:
    return not CACHES.isdisjoint(path.split("/"))
