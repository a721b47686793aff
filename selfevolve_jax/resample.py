"""The online filter: rows that the judge leaves out give way to further rows, until a batch is full.

SRT's second version drops prompts whose majority fraction is under 0.6 and resamples to a full batch
(arXiv 2505.21444 v2, online filtering); DAPO's dynamic sampling (arXiv 2503.14476, §3.2) is the same
idea with another filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from selfevolve_jax.judges.base import Verdict
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import Row


@dataclass(frozen=True)
class Judged:
    """R rows with their G samples and what the judge says of them. teacher_texts: R lists of the
    teacher's responses, empty without a teacher."""

    rows: Sequence[Row]
    samples: Samples
    texts: Sequence[Sequence[str]]
    verdict: Verdict
    teacher_texts: Sequence[Sequence[str]] = ()


def fill(
    first: Judged, more: Callable[[int, int], Judged], max_rounds: int
) -> tuple[Judged, Judged | None, int]:
    """(the batch, what gave way, rounds). The batch has as many rows as `first`.

    more(n, round): n further rows of the stream, judged; rounds count from 1. A row none of whose
    samples is trained on gives way to a new one, in its place; after max_rounds what still is not
    trained on stays in the batch, masked as before.
    """
    everything, places, rounds = first, np.arange(len(first.rows)), 0
    while rounds < max_rounds:
        missing = np.flatnonzero(~np.any(everything.verdict.trained_RxG[places], axis=1))
        if not missing.size:
            break
        rounds += 1
        start = len(everything.rows)
        everything = _joined(everything, more(missing.size, rounds))
        places[missing] = np.arange(start, start + missing.size)
    if not rounds:
        return first, None, 0
    rest = np.setdiff1d(np.arange(len(everything.rows)), places)
    return _taken(everything, places), _taken(everything, rest), rounds


def _joined(a: Any, b: Any) -> Any:
    """One after the other, over rows; counts are added."""
    if isinstance(a, np.ndarray):
        return np.concatenate((a, b))
    if isinstance(a, (Judged, Samples, Verdict)):
        return type(a)(*(_joined(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)))
    if isinstance(a, Mapping):
        return {name: _joined(a[name], b[name]) for name in a}
    if isinstance(a, Sequence):
        return [*a, *b]
    return a if a is None else a + b


def _taken(a: Any, rows: np.ndarray) -> Any:
    if isinstance(a, np.ndarray):
        return a[rows]
    if isinstance(a, (Judged, Samples, Verdict)):
        return type(a)(*(_taken(getattr(a, f.name), rows) for f in fields(a)))
    if isinstance(a, Mapping):
        return {name: _taken(value, rows) for name, value in a.items()}
    if isinstance(a, Sequence) and a:
        return [a[i] for i in rows]
    return a
