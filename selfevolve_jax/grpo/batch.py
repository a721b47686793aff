"""Samples laid out for the trainer: rows of tokens in which each token knows its sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from selfevolve_jax.rollout.engine import Samples, bucket


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """B rows of T tokens holding N = R·G sequences; sequence r·G + g is sample g of prompt r.

    sequence_ids is −1 at padding, and packing is no more than two ids in a row. `response` marks the
    tokens that were sampled: the only ones with a loss.
    """

    tokens_BxT: Any  # int32
    positions_BxT: Any  # int32, restart with each sequence
    sequence_ids_BxT: Any  # int32
    response_BxT: Any  # bool
    rollout_logprobs_BxT: Any  # float32, of each response token when it was drawn
    old_logprobs_BxT: Any = None  # float32, by the trainer before this batch's first update
    ref_logprobs_BxT: Any = None  # float32, by the reference policy


def build_batch(
    prompts: Sequence[Sequence[int]],
    samples: Samples,
    *,
    row_multiple: int,
    length: int | None = None,
    pack: bool = False,
    rows: int | None = None,
) -> Batch:
    """Numpy arrays for every sample. One sequence a row, or, packed, as many as fit (first fit, the
    longest first).

    row_multiple: B is padded to a multiple of it (mesh ways × accumulation × minibatches).
    length: T; by default the bucket that holds the longest sequence. rows: B at the least, so that a
    packed batch keeps one shape from step to step.
    """
    R, G, _ = samples.tokens_RxGxM.shape
    prompt_len = np.repeat([len(p) for p in prompts], G)
    total = prompt_len + samples.lengths_RxG.reshape(-1)
    T = length or bucket(int(total.max()))
    places = _first_fit(total, T) if pack else [(n, 0) for n in range(R * G)]
    B = max(max(row for row, _ in places) + 1, rows or 0)
    B = -(-B // row_multiple) * row_multiple

    tokens, positions = np.zeros((2, B, T), np.int32)
    sequence_ids = np.full((B, T), -1, np.int32)
    response = np.zeros((B, T), bool)
    logprobs = np.zeros((B, T), np.float32)
    for n, (row, start) in enumerate(places):
        r, g = divmod(n, G)
        middle, end = start + prompt_len[n], start + total[n]
        size = end - middle
        tokens[row, start:middle] = prompts[r]
        tokens[row, middle:end] = samples.tokens_RxGxM[r, g, :size]
        positions[row, start:end] = np.arange(total[n])
        sequence_ids[row, start:end] = n
        response[row, middle:end] = True
        logprobs[row, middle:end] = samples.logprobs_RxGxM[r, g, :size]
    return Batch(tokens, positions, sequence_ids, response, logprobs)


def _first_fit(lengths: np.ndarray, width: int) -> list[tuple[int, int]]:
    """(row, start) of each sequence: first-fit decreasing bin packing."""
    filled: list[int] = []
    places = [(0, 0)] * len(lengths)
    for n in np.argsort(-lengths, kind="stable"):
        row = next((i for i, used in enumerate(filled) if used + lengths[n] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        places[n] = (row, filled[row])
        filled[row] += int(lengths[n])
    return places
