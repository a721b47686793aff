"""Samples laid out for the trainer: rows of tokens in which each token knows where it belongs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from models.vision import Pixels
from selfevolve_jax import sharding
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.rollout.prompt_images import FEATURE_AXES, PromptImages


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """B rows of T tokens holding N = R·G sequences; sequence r·G + g is sample g of prompt r.

    A segment is a prompt followed by one or more of its samples, which share it: each sample is a
    branch (1, 2, …) that sees the trunk (0, the prompt) and itself. Packing is no more than several
    segments in a row.

    tokens, positions: int32; positions restart with each segment and each branch goes on from the
      trunk; they have a last axis of 3 where prompts show images (see `rope.angles`).
    segment_ids: −1 at padding. branch_ids: int32.
    sequence_ids: the sequence of a response token, −1 elsewhere: only these have a loss.
    source: for a response token, the index in its row of the token that predicts it.
    image_index: the place on U of each image token, −1 elsewhere; None where nothing is shown. Its
      features are given, or encoded from pixels with a gradient where the vision tower is trained.
    scored: the index in its row of each response token, −1 at padding, where these are so few that it
      pays to score no others; None: all are scored.
    """

    tokens_BxT: Any
    positions: Any  # [B, T] or [B, T, 3]
    segment_ids_BxT: Any
    branch_ids_BxT: Any
    sequence_ids_BxT: Any
    source_BxT: Any
    rollout_logprobs_BxT: Any  # float32, of each response token when it was drawn
    old_logprobs_BxT: Any = None  # float32, by the trainer before this batch's first update
    ref_logprobs_BxT: Any = None  # float32, by the reference policy
    image_index_BxT: Any = None
    features_BxUxD: Any = None
    pixels: Pixels | None = None
    scored_BxR: Any = None


def build_batch(
    prompts: Sequence[Sequence[int]],
    samples: Samples,
    *,
    row_multiple: int = 1,
    samples_per_segment: int = 1,
    pack: bool = False,
    length: int | None = None,
    images: PromptImages | None = None,
) -> Batch:
    """Numpy arrays for every sample: one segment a row, or, packed, as many as fit (first fit, the
    longest first).

    samples_per_segment: samples that share one copy of their prompt; divides G. The numbers are the
    same for any value: it trades padding and repeated prompts against longer rows.
    row_multiple: B is padded to a multiple of it (mesh ways × accumulation × minibatches).
    length: T; by default the bucket that holds the longest segment.
    images: what the prompts show; then nothing is packed. The caller adds features or pixels.
    """
    _, G, M = samples.tokens_RxGxM.shape
    K = samples_per_segment
    prompt_len = np.repeat([len(p) for p in prompts], G // K)
    lengths_UxK = samples.lengths_RxG.reshape(-1, K)
    total = prompt_len + lengths_UxK.sum(axis=1)
    T = length or bucket(int(total.max()))
    places = first_fit(total, T) if pack else [(u, 0) for u in range(len(total))]
    B = max(row for row, _ in places) + 1
    # Packed, B differs from step to step: a bucket of it keeps the number of shapes small.
    B = -(-(bucket(B, 1) if pack else B) // row_multiple) * row_multiple

    tokens, branch, source = np.zeros((3, B, T), np.int32)
    positions = np.zeros((B, T) if images is None else (B, T, 3), np.int32)
    index = None if images is None else np.full((B, T), -1, np.int32)
    segment, sequence = np.full((2, B, T), -1, np.int32)
    logprobs = np.zeros((B, T), np.float32)
    drawn, drawn_logprobs = (
        a.reshape(-1, K, M) for a in (samples.tokens_RxGxM, samples.logprobs_RxGxM)
    )
    for u, (row, start) in enumerate(places):
        n, prompt = prompt_len[u], u * K // G
        tokens[row, start : start + n] = prompts[prompt]
        after = n
        positions[row, start : start + n].T[...] = np.arange(n)
        if images is not None and index is not None:
            positions[row, start : start + n] = images.positions[prompt]
            index[row, start : start + n] = images.index[prompt]
            after = n + images.shifts[prompt]
        segment[row, start : start + total[u]] = u
        at = start + n
        for k in range(K):
            size = lengths_UxK[u, k]
            here = slice(at, at + size)
            tokens[row, here] = drawn[u, k, :size]
            positions[row, here].T[...] = after + np.arange(size)
            branch[row, here] = k + 1
            sequence[row, here] = u * K + k
            source[row, here] = np.arange(at - 1, at + size - 1)
            source[row, at : at + 1] = start + n - 1
            logprobs[row, here] = drawn_logprobs[u, k, :size]
            at += size
    return Batch(
        tokens, positions, segment, branch, sequence, source, logprobs, image_index_BxT=index
    )


def first_fit(
    lengths: Sequence[int] | np.ndarray, width: int, most: int | None = None
) -> list[tuple[int, int]]:
    """(row, start) of each segment: first-fit decreasing bin packing, at most so many in a row."""
    filled: list[int] = []
    held: list[int] = []
    places = [(0, 0)] * len(lengths)
    for n in np.argsort(-np.asarray(lengths), kind="stable"):
        fits = (
            i
            for i, used in enumerate(filled)
            if used + lengths[n] <= width and (most is None or held[i] < most)
        )
        row = next(fits, len(filled))
        if row == len(filled):
            filled.append(0)
            held.append(0)
        places[n] = (row, filled[row])
        filled[row] += int(lengths[n])
        held[row] += 1
    return places


def add_images(
    batch: Batch, seen: PromptImages, prompts: int, copies: int, trained: bool, mesh: Mesh
) -> Batch:
    """An unpacked batch on devices, in which each prompt has `copies` rows, with what they show:
    features, or where the tower is trained pixels."""
    if trained:
        pixels = jax.tree.map(lambda x: np.repeat(x[:prompts], copies, axis=0), seen.pixels)
        return replace(batch, pixels=sharding.put_batch(pixels, mesh))
    constrain, features = sharding.constrainer(mesh), seen.features_RxUxD
    if not features.devices() <= set(mesh.devices.flat):  # encoded where the rollouts are
        features = sharding.reshard(features, sharding.replicated(mesh))
    return replace(batch, features_BxUxD=_repeated(features, prompts, copies, constrain))


@functools.partial(jax.jit, static_argnames=("rows", "copies", "constrain"))
def _repeated(features: jax.Array, rows: int, copies: int, constrain) -> jax.Array:
    return constrain(jnp.repeat(features[:rows], copies, axis=0), FEATURE_AXES)
