"""Judges of the policy's own confidence: no answer is compared with any other.

They read the per-token statistics that the rollout recorded (`generate(stats=True)`), so there is no
second forward pass. Votes, majority fraction and pseudo-labels are those of the vote judges, for the
log; every sample stays in the loss, one without an answer too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import tally, verdict
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row


def self_certainty(
    spec: AnswerSpec, equivalence: Equivalence, *, trained: int | None = None
) -> Judge:
    """Reward: mean over a sample's tokens of logsumexp(z) − mean(z), in nats (Intuitor, arXiv
    2505.19590, section 3). It is KL(uniform ‖ p) + log V, so at least log V. trained: only the first
    `trained` samples of each row are trained on.

    Raises UserError for a bad pattern or `trained` above G; ValueError without statistics."""
    return _judge(spec, equivalence, lambda s: _token_mean(s, s.certainty_RxGxM), trained)


def rent(spec: AnswerSpec, equivalence: Equivalence, *, trained: int | None = None) -> Judge:
    """Reward: minus the mean over a sample's tokens of the entropy of the distribution they were
    drawn from, in nats (RENT, arXiv 2505.22660). Everything else is as in `self_certainty`."""
    return _judge(spec, equivalence, lambda s: -_token_mean(s, s.entropy_RxGxM), trained)


def _judge(
    spec: AnswerSpec,
    equivalence: Equivalence,
    reward: Callable[[Samples], np.ndarray],
    trained: int | None,
) -> Judge:
    extract("", spec.pattern)

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        if samples is None:
            raise ValueError("a judge of confidence needs the samples, generated with stats=True")
        return verdict(tally(texts, spec, equivalence), reward(samples), trained=trained)

    return judge


def _token_mean(samples: Samples, values_RxGxM: np.ndarray | None) -> np.ndarray:
    """float64 [R, G]. The stop token, where one was drawn, is a token like others."""
    if values_RxGxM is None:
        raise ValueError("the samples were generated without stats=True")
    inside = np.arange(values_RxGxM.shape[-1]) < samples.lengths_RxG[..., None]
    total_RxG = np.where(inside, values_RxGxM, 0.0).sum(-1, dtype=np.float64)
    return total_RxG / np.maximum(samples.lengths_RxG, 1)
