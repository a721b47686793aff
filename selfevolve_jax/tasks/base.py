"""What every task gives the loop: rows with prompts, an exact order, and how an answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig


@dataclass(frozen=True)
class Row:
    """One problem. `id` is its index in the data set: it keys random draws and groups samples, so
    two rows with the same text never merge. `gold` is read by the ground-truth judge and by logging
    only; label-free judges receive rows on which `hide_gold` has been called. `images` are paths or
    the bytes of files, in the order of their places in the prompt. `label` is a pseudo-label, which
    some policy gave (`labels.with_labels`); hide_gold keeps it, as it is not gold."""

    id: int
    prompt: str  # the full text the model continues: chat template and suffix already applied
    prompt_tokens: tuple[int, ...]
    gold: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[str | bytes, ...] = ()
    label: str | None = None

    def hide_gold(self) -> Row:
        return replace(self, gold=None, extra={})


@dataclass(frozen=True)
class AnswerSpec:
    """How a final answer is read from a response and when two answers are the same.

    pattern: "boxed" (the last balanced \\boxed{}), or a regular expression whose last match's first
      group (or whole match, if it has no group) is the answer.
    equivalence: "exact" compares stripped strings; "math" asks math-verify, both ways round.
    """

    pattern: str = "boxed"
    equivalence: Literal["exact", "math"] = "math"


@dataclass(frozen=True)
class Task:
    """Rows and how to read them. `tokenizer` is a transformers fast tokenizer; generation ends at any
    of `stop_tokens`. `counts` holds what loading filtered out, by reason, for the log. `images` says
    how pictures are made ready for the policy, None if it reads text only."""

    name: str
    train: Sequence[Row]
    held_out: Sequence[Row]
    tokenizer: Any
    stop_tokens: tuple[int, ...]
    answer: AnswerSpec
    counts: Mapping[str, int] = field(default_factory=dict)
    images: ImageConfig | None = None


def batch_at(rows: Sequence[Row], seed: int, position: int, size: int) -> list[Row]:
    """The `size` rows that start at `position` of an endless stream of seeded permutations.

    The stream is a pure function of (seed, position): a resumed run that stores only the integer
    position sees exactly the rows it would have seen. Each epoch is a fresh permutation; a batch may
    cross the boundary, and then may hold a row twice. UserError if there are no rows.
    """
    if not rows:
        raise UserError(
            "the task has no rows to draw from; fix: a data set or a split with rows in it"
        )
    picked: list[Row] = []
    while len(picked) < size:
        epoch, offset = divmod(position + len(picked), len(rows))
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        picked += [rows[i] for i in order[offset : offset + size - len(picked)]]
    return picked
