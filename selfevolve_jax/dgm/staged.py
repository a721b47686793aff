"""Evaluation in stages: which tasks an agent must still be tried on, whether it is valid, its score.

Everything is worked out from the evaluations that are there, so a resumed run just asks again. DGM
(arXiv 2505.22954) on SWE-bench: 10 tasks; 50 more where at least 40% are solved; 140 more for an agent
above 40% on those 60 and among the archive's two best. On Polyglot: 10, then 50 more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from selfevolve_jax.dgm.archive import Evaluation
from selfevolve_jax.dgm.contract import draws, seed_of
from selfevolve_jax.errors import UserError

By = Literal["solved", "partial"]
Gate = Literal["all", "better"]
Verdict = Literal["valid", "invalid", "unfinished"]
Job = tuple[str, int]  # task's id, seed

_ROUNDING = 1e-9


@dataclass(frozen=True)
class StagesConfig:
    """sizes: how many tasks each stage adds; () is one stage of all tasks. threshold: the score on the
    tasks so far that opens the next stage: at least this for the second, above it for later ones, which
    are for the `top` best alone. repeats: attempts at each task, each with a seed of its own. by: what
    a task counts, 1 or 0 for solved or its partial credit."""

    sizes: tuple[int, ...] = (10, 50)
    threshold: float = 0.4
    top: int = 2
    repeats: int = 1
    by: By = "solved"

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size < 1:
                raise UserError(f"sizes={self.sizes}: a stage of {size} tasks; give 1 or more.")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold={self.threshold} is a score: give one between 0 and 1.")
        for name in ("top", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.by not in get_args(By):
            raise UserError(f"by={self.by!r} is not one of {', '.join(get_args(By))}.")


def stages(task_ids: Iterable[str], config: StagesConfig, seed: int) -> list[list[Job]]:
    """The jobs that each stage adds, the same for all agents of a run, so that scores compare: the
    tasks and the seeds of their attempts follow from the run's seed alone, whatever order the tasks
    come in. UserError where there are fewer tasks than the stages ask for."""
    order = sorted(set(task_ids))
    sizes = config.sizes or (len(order),)
    if not order:
        raise UserError("There is no task to evaluate agents on.")
    if sum(sizes) > len(order):
        raise UserError(
            f"sizes={config.sizes} asks for {sum(sizes)} tasks, and there are {len(order)}. "
            "Fix: smaller stages, or () for one stage of all tasks."
        )
    draws(seed, "stages").shuffle(order)
    parts, start = [], 0
    for size in sizes:
        parts.append(
            [
                (task, seed_of(seed, "attempt", task, repeat))
                for task in order[start : start + size]
                for repeat in range(config.repeats)
            ]
        )
        start += size
    return parts


def wanted(
    parts: Sequence[Sequence[Job]],
    evaluations: Sequence[Evaluation],
    others: Sequence[Sequence[Evaluation]],
    config: StagesConfig,
) -> list[Job]:
    """The jobs that this agent still needs now, in order; none: it is done.

    An agent that has an evaluation of a stage was let into it, and finishes it whatever others do.

    Args:
        parts: `stages`.
        evaluations: the agent's own; those that no stage asks for are passed over.
        others: the evaluations of each other archived agent, for "among the best". Give the same ones
            whenever this agent is asked about, such as all of earlier generations: then what it is
            tried on does not depend on which job ended first. They are compared on the same tasks, and
            those that never came so far do not compete.
    """
    done = {(e.task, e.seed) for e in evaluations}
    open_parts = _open(parts, evaluations, others, config)
    return [job for part in open_parts for job in part if job not in done]


def judged(
    parts: Sequence[Sequence[Job]],
    evaluations: Sequence[Evaluation],
    others: Sequence[Sequence[Evaluation]],
    config: StagesConfig,
) -> tuple[Verdict, str]:
    """Whether an agent may join the archive, and why not. valid: every task of its stages was attempted
    and at least one answer was not empty. Arguments as for `wanted`."""
    missing = len(wanted(parts, evaluations, others, config))
    counted = asked(parts, evaluations)
    if missing:
        return "unfinished", f"{missing} of {missing + len(counted)} evaluations are to come"
    if all(e.empty for e in counted):
        return "invalid", f"no answer in any of {len(counted)} evaluations"
    return "valid", ""


def asked(parts: Sequence[Sequence[Job]], evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """Those evaluations that a stage asks for: what an agent's score is made from."""
    jobs = {job for part in parts for job in part}
    return [e for e in evaluations if (e.task, e.seed) in jobs]


def score(evaluations: Iterable[Evaluation], by: By = "solved") -> float:
    """In [0, 1]: the mean over tasks of each task's mean over its attempts. ValueError without one."""
    attempts: dict[str, list[float]] = defaultdict(list)
    for e in evaluations:
        attempts[e.task].append(e.solved if by == "solved" else e.partial)
    if not attempts:
        raise ValueError("no evaluation to score")
    # Exact sums, so that the order of evaluations is of no account, and one division: 0.4 is then 0.4,
    # and thresholds mean what they say.
    common = math.lcm(*(len(values) for values in attempts.values()))
    total = math.fsum(math.fsum(v) * (common // len(v)) for v in attempts.values())
    return total / (common * len(attempts))


def keeps(score: float, initial: float, gate: Gate = "all", leeway: float = 0.1) -> bool:
    """Whether a valid agent joins the archive. gate: "all", or "better" for those that are not worse
    than the initial agent's score minus `leeway`."""
    if gate not in get_args(Gate):
        raise UserError(f"gate={gate!r} is not one of {', '.join(get_args(Gate))}.")
    return gate == "all" or score >= initial - leeway - _ROUNDING


def _open(
    parts: Sequence[Sequence[Job]],
    evaluations: Sequence[Evaluation],
    others: Sequence[Sequence[Evaluation]],
    config: StagesConfig,
) -> Sequence[Sequence[Job]]:
    """The stages that the agent is in, the first always."""
    done = {(e.task, e.seed) for e in evaluations}
    reached = 1
    for n, part in enumerate(parts):
        if not done.isdisjoint(part):
            reached = n + 1
    while reached < len(parts):
        so_far = {job for part in parts[:reached] for job in part}
        mine = _on(so_far, evaluations, config)
        if mine is None or mine < config.threshold:
            break
        if reached > 1:
            if mine == config.threshold:
                break
            theirs = [_on(so_far, other, config) for other in others]
            if sum(s is not None and s > mine for s in theirs) >= config.top:
                break
        reached += 1
    return parts[:reached]


def _on(jobs: set[Job], evaluations: Sequence[Evaluation], config: StagesConfig) -> float | None:
    """The score on these jobs; None unless all of them are there."""
    there = [e for e in evaluations if (e.task, e.seed) in jobs]
    return score(there, config.by) if len(there) == len(jobs) else None
