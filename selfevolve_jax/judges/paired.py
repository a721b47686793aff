"""Labels from another view: a question and its rephrasing vote for each other (Co-rewarding-I,
arXiv 2508.00410, section 3).

The two views of a problem are two neighbouring rows of the batch: rows 2i and 2i + 1, which carry the
same `id`. `with_views` makes such a batch. The rollout gives an id that comes twice fresh random
numbers the second time, so nothing else has to know of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import check_threshold, equal_to, tally, verdict
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row

PAIR = "pair"


def with_views(rows: Sequence[Row]) -> list[Row]:
    """Every row followed by its other view: 2R rows.

    `Row.extra["pair"]` of a row is the other view, a Row whose prompt, tokens and images are used; id
    and gold are those of the row itself. UserError names a row that has none.
    """
    both = []
    for row in rows:
        other = row.extra.get(PAIR)
        if not isinstance(other, Row):
            raise UserError(
                f"row {row.id} has no rephrased question, which the paired vote needs; give the "
                'task one for every row, or choose a judge that needs none, such as "majority"'
            )
        view = replace(
            row, prompt=other.prompt, prompt_tokens=other.prompt_tokens, images=other.images
        )
        both += [row, view]
    return both


def co_reward(
    spec: AnswerSpec,
    equivalence: Equivalence,
    *,
    threshold: float = 0.0,
    trained: int | None = None,
) -> Judge:
    """Reward 1 for a sample whose answer equals the winner of the other view's vote, else 0.

    Both views are trained on. Winners and ties are those of `Tally`; the pseudo-label of a row is the
    other view's winner, while its votes and majority fraction are its own. A row for whose other view
    nothing could be parsed leaves the loss.

    threshold: a row leaves the loss where the vote that labels it, the other view's, has a majority
    fraction below it. trained: all samples vote, the first `trained` of each row are trained on.
    Raises UserError for rows that are not in pairs, a threshold outside [0, 1], a bad pattern, or
    `trained` above G.
    """
    check_threshold(threshold)
    extract("", spec.pattern)

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        _check_pairs(rows)
        before = equivalence.timeouts
        counted = tally(texts, spec, equivalence)
        other_R = np.arange(len(rows)) ^ 1  # 0 and 1, 2 and 3, …
        labels = [counted.winners[i] for i in other_R]
        fraction_R = counted.majority_fraction_R[other_R]
        won = np.asarray(equal_to(counted.answers, labels, equivalence), bool)
        return verdict(
            counted,
            won.reshape(counted.won_RxG.shape),
            keep_R=(fraction_R > 0) & (fraction_R >= threshold),
            trained=trained,
            pseudo_labels=labels,
            timeouts=equivalence.timeouts - before - counted.timeouts,
        )

    return judge


def _check_pairs(rows: Sequence[Row]) -> None:
    ids = [row.id for row in rows]
    if ids[::2] != ids[1::2]:
        raise UserError(
            "the paired vote needs two views of every problem, as neighbouring rows with one id; the "
            f"{len(ids)} rows have the ids {', '.join(map(str, ids[:8]))}{', …' * (len(ids) > 8)}. "
            'Use a task with rephrased questions, or another judge, such as "majority"'
        )
