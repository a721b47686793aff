"""Agreement with a label that was given before training (offline self-training; SRT, arXiv 2505.21444,
the section on mitigating collapse)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import equal_to, tally, verdict
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row


def offline(spec: AnswerSpec, equivalence: Equivalence, *, trained: int | None = None) -> Judge:
    """Reward 1 for a sample whose answer equals `Row.label`, else 0; the pseudo-label is that label.

    A row whose label is None leaves the loss. A group without a parsable answer stays in: that its
    samples all miss the label is known. Votes and majority fraction are those of the samples at hand,
    for the log. Labels come from `labels.with_labels`; gold is never read.
    trained: only the first `trained` samples of each row are trained on.
    Raises UserError for a bad pattern, or `trained` above G.
    """
    extract("", spec.pattern)

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        before = equivalence.timeouts
        counted = tally(texts, spec, equivalence)
        labels = [row.label for row in rows]
        agrees = np.asarray(equal_to(counted.answers, labels, equivalence), bool)
        return verdict(
            counted,
            agrees.reshape(counted.won_RxG.shape),
            keep_R=np.asarray([label is not None for label in labels], bool),
            trained=trained,
            pseudo_labels=labels,
            timeouts=equivalence.timeouts - before - counted.timeouts,
        )

    return judge
