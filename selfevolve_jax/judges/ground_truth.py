"""Grading against gold answers: the judge that SRT is held against, and the figures for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import Tally, equal_to, tally, verdict
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row


@dataclass(frozen=True)
class Grades:
    """R rows with G samples each, held against gold.

    correct_RxG: bool; the sample's own answer equals gold.
    majority_correct_R: bool; the winning cluster's representative equals gold; False without a
      winner.
    tally: answers, votes and winners, as the vote judges see them.
    timeouts: equivalence checks ended by a limit, the tally's among them.
    """

    correct_RxG: np.ndarray
    majority_correct_R: np.ndarray
    tally: Tally
    timeouts: int


def grade(
    rows: Sequence[Row],
    texts: Sequence[Sequence[str]],
    spec: AnswerSpec,
    equivalence: Equivalence,
) -> Grades:
    """Grades R lists of G responses, whose answers are extracted once for both figures.

    Raises UserError naming the row where a gold answer is missing or empty.
    """
    golds = [_gold(row) for row in rows]
    before = equivalence.timeouts
    counted = tally(texts, spec, equivalence)
    correct = equal_to(counted.answers, golds, equivalence)
    majority = equal_to([[winner] for winner in counted.winners], golds, equivalence)
    return Grades(
        correct_RxG=np.asarray(correct, bool).reshape(counted.won_RxG.shape),
        majority_correct_R=np.asarray(majority, bool).reshape(len(golds)),
        tally=counted,
        timeouts=equivalence.timeouts - before,
    )


def ground_truth(
    spec: AnswerSpec, equivalence: Equivalence, *, trained: int | None = None
) -> Judge:
    """Reward 1 for a sample whose answer equals its row's gold, else 0; the pseudo-label is the
    gold.

    Votes and majority fraction are reported as by the vote judges. Every group stays in the loss,
    one without a parsable answer too: that none of its samples is right is knowledge, not a guess.
    trained: only the first `trained` samples of each row are trained on.
    Raises UserError for a row without gold, a bad pattern, or `trained` above G.
    """
    extract("", spec.pattern)

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        grades = grade(rows, texts, spec, equivalence)
        return verdict(
            grades.tally,
            grades.correct_RxG,
            trained=trained,
            pseudo_labels=[_gold(row) for row in rows],
            timeouts=grades.timeouts - grades.tally.timeouts,
        )

    return judge


def label_accuracy(rows: Sequence[Row], judged: Verdict, equivalence: Equivalence) -> np.ndarray:
    """float32 [R]: 1 where the pseudo-label equals gold, 0 where it does not or there is none, NaN
    where the row has no gold. For the log; `rows` are the originals, whose gold is not hidden."""
    known = [i for i, row in enumerate(rows) if (row.gold or "").strip()]
    right = equal_to(
        [[judged.pseudo_labels[i]] for i in known], [_gold(rows[i]) for i in known], equivalence
    )
    accuracy_R = np.full(len(rows), np.nan, np.float32)
    accuracy_R[known] = [same for (same,) in right]
    return accuracy_R


def sample_accuracy(rows: Sequence[Row], judged: Verdict, equivalence: Equivalence) -> np.ndarray:
    """bool [R, G]: the sample's own answer equals gold. For the log, whatever the judge was.

    Raises UserError naming the row where a gold answer is missing."""
    right = equal_to(judged.answers, [_gold(row) for row in rows], equivalence)
    return np.asarray(right, bool)


def _gold(row: Row) -> str:
    gold = (row.gold or "").strip()
    if not gold:
        raise UserError(
            f"row {row.id} has no gold answer, which grading needs; give the data set an answer "
            'column, or choose a judge that needs none, such as "majority"'
        )
    return gold
