"""Controls: rewards that say nothing of correctness. Without them no gain can be believed, since
some models rise under any reward ("Spurious Rewards", arXiv 2506.10947)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from selfevolve_jax.judges.answers import extract
from selfevolve_jax.judges.base import Judge, Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import tally, verdict
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row

_PURPOSE = zlib.crc32(b"judges.random_reward")  # keeps these draws apart from all others of the run


def random_reward(
    spec: AnswerSpec, equivalence: Equivalence, seed: int, *, trained: int | None = None
) -> Judge:
    """Reward 1 with probability one half, whatever the sample says, an unparsable one included.

    A draw depends on (seed, step, row.id, sample index) alone, and so not on the rest of the batch
    nor on G; a row that comes again in one batch gets fresh draws, as its samples are fresh. Votes,
    majority fraction and pseudo-labels are those of the vote judges, for the log.
    """
    extract("", spec.pattern)

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        counted = tally(texts, spec, equivalence)
        shape = counted.won_RxG.shape
        # Doubles come off a generator one by one, so sample i's is the same for every G > i.
        draws, earlier = [], Counter()
        for row in rows:
            again = [earlier[row.id]] if earlier[row.id] else []
            key = [_PURPOSE, seed, step, row.id, *again]
            draws.append(np.random.default_rng(key).random(shape[1]))
            earlier[row.id] += 1
        return verdict(counted, np.asarray(draws).reshape(shape) < 0.5, trained=trained)

    return judge


def format_only(spec: AnswerSpec, equivalence: Equivalence, *, trained: int | None = None) -> Judge:
    """Reward 1 for a sample from which an answer can be read, right or wrong, else 0."""
    extract("", spec.pattern)

    def judge(
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
    ) -> Verdict:
        counted = tally(texts, spec, equivalence)
        return verdict(counted, counted.support_RxG > 0, trained=trained)

    return judge
