"""How sure a solve rate is, and the difference between two agents: closed forms, no random numbers.

They have a width also where all tasks agree, which a bootstrap has not. Tasks of one group (a program,
a language) are alike, so they say less than as many tasks of different groups: where groups repeat, the
number of tasks is divided by the design effect (Kish 1965), as survey statistics do. The intervals are
of one agent that was fixed beforehand: the best of many looks better than it is, until it is run again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from selfevolve_jax.dgm.archive import Evaluation
from selfevolve_jax.dgm.staged import By
from selfevolve_jax.wilson import normal, wilson_at


@dataclass(frozen=True)
class Interval:
    """mean: over tasks, of each task's mean over its attempts. low, high: the ends. tasks: how many."""

    mean: float
    low: float
    high: float
    tasks: int


def rate(evaluations: Iterable[Evaluation], by: By = "solved", *, level: float = 0.95) -> Interval:
    """An agent's score with its interval: Wilson's on the effective number of tasks, with Student's t
    of (groups − 1) degrees of freedom in place of z where groups repeat. Repeats of a task are averaged
    first. One group alone cannot be told from none: then tasks count as independent. ValueError
    without an evaluation."""
    values, groups = _by_task(evaluations, by)
    if not values:
        raise ValueError("no evaluation to take a rate from")
    return _rate(list(values.values()), [groups[task] for task in values], level)


def difference(
    first: Iterable[Evaluation],
    second: Iterable[Evaluation],
    by: By = "solved",
    *,
    level: float = 0.95,
) -> Interval:
    """second − first on the tasks that both attempted, paired by task: the share gained less the share
    lost. Each has its interval as in `rate`; they are put together by their own distances (Zou & Donner
    2008), with the correlation of two shares of the same tasks. ValueError where they share no task."""
    before, groups = _by_task(first, by)
    after, _ = _by_task(second, by)
    shared = [task for task in before if task in after]
    if not shared:
        raise ValueError("the two agents share no task")
    changes = [after[task] - before[task] for task in shared]
    named = [groups[task] for task in shared]
    gained = _rate([max(0.0, change) for change in changes], named, level)
    lost = _rate([max(0.0, -change) for change in changes], named, level)
    both = gained.mean * lost.mean
    opposed = math.sqrt(both / ((1 - gained.mean) * (1 - lost.mean))) if both else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(a * a + b * b + 2 * opposed * a * b)

    mean = gained.mean - lost.mean
    low = mean - reach(gained.mean - gained.low, lost.high - lost.mean)
    high = mean + reach(gained.high - gained.mean, lost.mean - lost.low)
    return Interval(mean, max(-1.0, low), min(1.0, high), len(shared))


def _rate(values: Sequence[float], groups: Sequence[str], level: float) -> Interval:
    effect, z = _clustering(values, groups, level)
    mean, n = fmean(values), len(values)
    low, high = wilson_at(mean * n / effect, n / effect, z)
    return Interval(mean, low, high, n)


def _by_task(
    evaluations: Iterable[Evaluation], by: By
) -> tuple[dict[str, float], Mapping[str, str]]:
    attempts: dict[str, list[float]] = defaultdict(list)
    groups = {}
    for e in evaluations:
        attempts[e.task].append(e.solved if by == "solved" else e.partial)
        groups[e.task] = e.group
    return {task: fmean(values) for task, values in attempts.items()}, groups


def _clustering(
    values: Sequence[float], groups: Sequence[str], level: float
) -> tuple[float, float]:
    """(design effect, quantile). The effect is the variance of the mean with whole groups drawn over
    that with single tasks drawn, and at least 1; where all values are equal it is tasks / groups."""
    n, G = len(values), len(set(groups))
    if G in (1, n):
        return 1.0, normal(level)
    mean = fmean(values)
    sums: dict[str, float] = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    single = math.fsum((value - mean) ** 2 for value in values) * n / (n - 1)
    whole = math.fsum(s * s for s in sums.values()) * G / (G - 1)
    effect = max(1.0, whole / single) if single > 1e-12 else n / G
    from scipy.special import stdtrit  # a third of a second to import

    return effect, float(stdtrit(G - 1, (1 + level) / 2))
