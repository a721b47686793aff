"""Majority for selection, novelty for variation (EVOL-RL, arXiv 2509.15194, section 3)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np

from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import check_threshold, tally, verdict
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row

# Words, single digits and single signs: digits apart, or a chain of them would be one word.
_TOKEN = re.compile(r"\d|[^\W\d_]+|[^\w\s]|_")
_GRAM = 4


def evol(
    spec: AnswerSpec,
    equivalence: Equivalence,
    *,
    threshold: float = 0.0,
    trained: int | None = None,
) -> Judge:
    """Reward 0.5 + u/2, in [0.5, 1], for a sample of the majority; −1 + u/2, in [−1, −0.5], for any
    other answer; −1 for a sample without one. So a majority sample always earns more than another.

    u, in [0, 1], is the sample's novelty among those of its side (the majority; all others that have
    an answer), scaled so that the side's least novel has 0 and its most novel 1; 0 for all where they
    are equally novel. Novelty is 1 − the largest similarity to another sample of its side. The paper
    measures similarity by the cosine of an embedding model's vectors; here it is the Jaccard
    similarity of the sets of token 4-grams of the texts before their answers, which needs no model
    and sees wording alone. `Verdict.parts["novelty"]` is u, 0 for a sample without an answer.

    threshold, trained, ties and groups without a parsable answer are as in `majority_vote`. All G
    samples are compared, whether trained on or not. The paper adds an entropy bonus of 0.003 and a
    clip of 0.28 above (grpo.entropy_coef, grpo.clip_high): EVOL-RL is the three together.
    Raises UserError for a threshold outside [0, 1], a bad pattern, or `trained` above G.
    """
    check_threshold(threshold)
    extract("", spec.pattern)

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        counted = tally(texts, spec, equivalence)
        won_RxG, parsed_RxG = counted.won_RxG, counted.support_RxG > 0
        novelty_RxG = np.zeros(won_RxG.shape)
        for r, (group, answers) in enumerate(zip(texts, counted.answers, strict=True)):
            # `won` of unparsable samples is False, so they need taking out of the second side only.
            for side in (won_RxG[r], parsed_RxG[r] & ~won_RxG[r]):
                members = np.flatnonzero(side).tolist()
                reasonings = [_reasoning(group[g], answers[g]) for g in members]
                novelty_RxG[r, members] = _scaled(novelty(reasonings))
        reward_RxG = np.where(won_RxG, 0.5, -1.0) + novelty_RxG / 2
        fraction_R = counted.majority_fraction_R
        return verdict(
            counted,
            reward_RxG,
            keep_R=(fraction_R > 0) & (fraction_R >= threshold),
            trained=trained,
            parts={"novelty": novelty_RxG.astype(np.float32)},
        )

    return judge


def novelty(texts: Sequence[str]) -> np.ndarray:
    """float64 [n]: 1 − the largest Jaccard similarity of each text's set of token 4-grams to that of
    another. 1 for a lone text. A text of fewer than 4 tokens is one gram; of two without any the
    similarity is 1."""
    if len(texts) < 2:
        return np.ones(len(texts))
    grams = [_grams(text) for text in texts]
    nearest = np.zeros(len(texts))
    for i, j in itertools.combinations(range(len(texts)), 2):
        common = len(grams[i] & grams[j])
        union = len(grams[i]) + len(grams[j]) - common
        similarity = common / union if union else 1.0
        nearest[i], nearest[j] = max(nearest[i], similarity), max(nearest[j], similarity)
    return 1 - nearest


def _grams(text: str) -> set[tuple[str, ...]]:
    tokens = _TOKEN.findall(text)
    if len(tokens) < _GRAM:
        return {tuple(tokens)} if tokens else set()
    return set(zip(*(tokens[i:] for i in range(_GRAM)), strict=False))


def _reasoning(text: str, answer: str | None) -> str:
    """What stands before the answer, that is before the last place at which its string occurs."""
    return text if answer is None else text[: text.rfind(answer)]


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
