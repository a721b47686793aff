"""Judges without labels: the samples of a group vote on what is right (SRT, arXiv 2505.21444, §3).

They never look at a row, so no gold answer can reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import Tally, tally, verdict
from selfevolve_jax.tasks.base import AnswerSpec, Row


def majority_vote(
    spec: AnswerSpec,
    equivalence: Equivalence,
    *,
    threshold: float = 0.0,
    trained: int | None = None,
) -> Judge:
    """Reward 1 for a sample in its group's winning cluster, else 0.

    Membership is what earns: a sample is never graded again against the winner's representative. An
    unparsable sample neither votes nor earns. Ties: see `Tally`.

    threshold: a group whose majority fraction (the winner's votes / G) is below it leaves the loss;
      its pseudo-label is still reported. A group with no parsable answer always leaves.
    trained: all G samples vote, the first `trained` of each row are trained on (TTRL's 64 and 32).
    Raises UserError for a threshold outside [0, 1], a bad pattern, or `trained` above G.
    """
    return _vote_judge(spec, equivalence, lambda t: t.won_RxG, threshold, trained)


def soft_majority(
    spec: AnswerSpec,
    equivalence: Equivalence,
    *,
    threshold: float = 0.0,
    trained: int | None = None,
) -> Judge:
    """Reward: the votes of the sample's own cluster / G; 0 for an unparsable one. (The cluster
    frequency of EMPO, arXiv 2504.05812.) Everything else is as in `majority_vote`."""
    return _vote_judge(
        spec, equivalence, lambda t: t.support_RxG / t.support_RxG.shape[1], threshold, trained
    )


def _vote_judge(
    spec: AnswerSpec,
    equivalence: Equivalence,
    reward: Callable[[Tally], np.ndarray],
    threshold: float,
    trained: int | None,
) -> Judge:
    if not 0 <= threshold <= 1:
        raise UserError(f"the vote threshold is {threshold}; it must lie between 0 and 1")
    extract("", spec.pattern)  # a bad pattern is refused now, not after the first rollout

    def judge(rows: Sequence[Row], texts: Sequence[Sequence[str]], step: int) -> Verdict:
        counted = tally(texts, spec, equivalence)
        # Compared in float64: 3/5 is not below 0.6, but in float32 a quotient can be.
        fraction_R = counted.majority_fraction_R
        keep_R = (fraction_R > 0) & (fraction_R >= threshold)
        return verdict(counted, reward(counted), keep_R=keep_R, trained=trained)

    return judge
