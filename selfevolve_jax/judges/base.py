"""The one interface of every judge: rows and their samples in, a Verdict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import Row


@dataclass(frozen=True)
class Verdict:
    """What a judge says of R rows with G samples each.

    rewards_RxG: float32; 0 where `trained_RxG` is False.
    trained_RxG: bool; False for a sample that must stay out of the loss and of its denominators (a
      group with no parsable answer, a group under the vote threshold, samples drawn only to vote).
    answers: R lists of G extracted answers, None where nothing could be parsed.
    pseudo_labels: the answer taken as right for each row, None where there is none.
    votes: for each row the canonical answers with their counts, most votes first.
    majority_fraction_R: votes of the winner / G (unparsable samples count in G); 0 without a winner.
    timeouts: equivalence checks killed for taking too long.
    parts: other named per-sample rewards [R, G], kept in the samples log.
    """

    rewards_RxG: np.ndarray
    trained_RxG: np.ndarray
    answers: Sequence[Sequence[str | None]]
    pseudo_labels: Sequence[str | None]
    votes: Sequence[Mapping[str, int]]
    majority_fraction_R: np.ndarray
    timeouts: int = 0
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)


class Judge(Protocol):
    """(rows, texts, step, samples) -> Verdict.

    texts: R lists of G responses. step: seeds judges that draw at random. samples: what the texts
    were decoded from; only the judges of `registry.NEEDS_STATS` read it, and for those it must have
    been generated with stats.
    """

    def __call__(
        self,
        rows: Sequence[Row],
        texts: Sequence[Sequence[str]],
        step: int,
        samples: Samples | None = None,
        /,
    ) -> Verdict: ...
