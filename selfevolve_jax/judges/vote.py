"""Judges without labels: the samples of a group vote on what is right (SRT, arXiv 2505.21444, §3).

They never look at a row, so no gold answer can reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import Tally, check_threshold, tally, verdict
from selfevolve_jax.rollout.engine import Samples
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
    trained: all G samples vote, the first `trained` of each row are trained on. With G = 64 and 32 of
      them trained this is TTRL (arXiv 2504.16084), but for answers that cannot be parsed, which vote
      there, and do not here.
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
    """Reward: the votes of the sample's own cluster / G; 0 for an unparsable one. Everything else is
    as in `majority_vote`."""
    return _vote_judge(spec, equivalence, _cluster_frequency, threshold, trained)


def empo(
    spec: AnswerSpec,
    equivalence: Equivalence,
    *,
    threshold: float = 0.0,
    trained: int | None = None,
) -> Judge:
    """The cluster frequency of `soft_majority`, but 0 for a whole group in which no two samples agree
    (EMPO, arXiv 2504.05812): there the semantic entropy has reached its maximum, log G, and says that
    the policy knows nothing to grow surer of. Such a group stays in the loss. For that entropy an
    unparsable sample is a cluster by itself. Everything else is as in `majority_vote`."""

    def reward(counted: Tally) -> np.ndarray:
        # Counted, since an entropy of G equal shares can round to either side of log G.
        agreed_Rx1 = counted.support_RxG.max(axis=1, initial=0, keepdims=True) > 1
        return np.where(agreed_Rx1, _cluster_frequency(counted), 0.0)

    return _vote_judge(spec, equivalence, reward, threshold, trained)


def _cluster_frequency(counted: Tally) -> np.ndarray:
    return counted.support_RxG / max(counted.support_RxG.shape[1], 1)


def _vote_judge(
    spec: AnswerSpec,
    equivalence: Equivalence,
    reward: Callable[[Tally], np.ndarray],
    threshold: float,
    trained: int | None,
) -> Judge:
    check_threshold(threshold)
    extract("", spec.pattern)  # a bad pattern is refused now, not after the first rollout

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        counted = tally(texts, spec, equivalence)
        # Compared in float64: 3/5 is not below 0.6, but in float32 a quotient can be.
        fraction_R = counted.majority_fraction_R
        keep_R = (fraction_R > 0) & (fraction_R >= threshold)
        return verdict(counted, reward(counted), keep_R=keep_R, trained=trained)

    return judge
