"""Samples laid out for the trainer: rows of tokens in which each token knows where it belongs."""

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

    A segment is a prompt followed by one or more of its samples, which share it: each sample is a
    branch (1, 2, …) that sees the trunk (0, the prompt) and itself. Packing is no more than several
    segments in a row.

    tokens, positions: int32; positions restart with each segment and each branch goes on from the
      trunk. segment_ids: −1 at padding. branch_ids: int32.
    sequence_ids: the sequence of a response token, −1 elsewhere: only these have a loss.
    source: for a response token, the index in its row of the token that predicts it.
    """

    tokens_BxT: Any
    positions_BxT: Any
    segment_ids_BxT: Any
    branch_ids_BxT: Any
    sequence_ids_BxT: Any
    source_BxT: Any
    rollout_logprobs_BxT: Any  # float32, of each response token when it was drawn
    old_logprobs_BxT: Any = None  # float32, by the trainer before this batch's first update
    ref_logprobs_BxT: Any = None  # float32, by the reference policy


def build_batch(
    prompts: Sequence[Sequence[int]],
    samples: Samples,
    *,
    row_multiple: int = 1,
    samples_per_segment: int = 1,
    pack: bool = False,
    length: int | None = None,
) -> Batch:
    """Numpy arrays for every sample: one segment a row, or, packed, as many as fit (first fit, the
    longest first).

    samples_per_segment: samples that share one copy of their prompt; divides G. The numbers are the
    same for any value: it trades padding and repeated prompts against longer rows.
    row_multiple: B is padded to a multiple of it (mesh ways × accumulation × minibatches).
    length: T; by default the bucket that holds the longest segment.
    """
    _, G, M = samples.tokens_RxGxM.shape
    K = samples_per_segment
    prompt_len = np.repeat([len(p) for p in prompts], G // K)
    lengths_UxK = samples.lengths_RxG.reshape(-1, K)
    total = prompt_len + lengths_UxK.sum(axis=1)
    T = length or bucket(int(total.max()))
    places = _first_fit(total, T) if pack else [(u, 0) for u in range(len(total))]
    B = max(row for row, _ in places) + 1
    # Packed, B differs from step to step: a bucket of it keeps the number of shapes small.
    B = -(-(bucket(B, 1) if pack else B) // row_multiple) * row_multiple

    tokens, positions, branch, source = np.zeros((4, B, T), np.int32)
    segment, sequence = np.full((2, B, T), -1, np.int32)
    logprobs = np.zeros((B, T), np.float32)
    drawn, drawn_logprobs = (
        a.reshape(-1, K, M) for a in (samples.tokens_RxGxM, samples.logprobs_RxGxM)
    )
    for u, (row, start) in enumerate(places):
        n = prompt_len[u]
        tokens[row, start : start + n] = prompts[u * K // G]
        positions[row, start : start + n] = np.arange(n)
        segment[row, start : start + total[u]] = u
        at = start + n
        for k in range(K):
            size = lengths_UxK[u, k]
            here = slice(at, at + size)
            tokens[row, here] = drawn[u, k, :size]
            positions[row, here] = n + np.arange(size)
            branch[row, here] = k + 1
            sequence[row, here] = u * K + k
            source[row, here] = np.arange(at - 1, at + size - 1)
            source[row, at : at + 1] = start + n - 1
            logprobs[row, here] = drawn_logprobs[u, k, :size]
            at += size
    return Batch(tokens, positions, segment, branch, sequence, source, logprobs)


def _first_fit(lengths: np.ndarray, width: int) -> list[tuple[int, int]]:
    """(row, start) of each segment: first-fit decreasing bin packing."""
    filled: list[int] = []
    places = [(0, 0)] * len(lengths)
    for n in np.argsort(-lengths, kind="stable"):
        row = next((i for i, used in enumerate(filled) if used + lengths[n] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        places[n] = (row, filled[row])
        filled[row] += int(lengths[n])
    return places
