"""Supervised training on (prompt, response) token pairs; the base policies are made with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.config import ModelConfig, VisionConfig
from models.shared import Constrain
from selfevolve_jax.grpo.batch import Batch, first_fit
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.grpo.losses import token_weights
from selfevolve_jax.grpo.update import apply_gradient, summed_gradient
from selfevolve_jax.images import Picture, layout, prompt_positions
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.state import TrainState
from selfevolve_jax.trainable import Mask

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a text and of the response to it
# Tokens of a packed row, where none is longer, and how many may share one: the pictures of each take as
# much room as those of the row that has most.
_PACKED, _SHARED = 256, 4


def row_length(prompt: Sequence[int], pairs: Iterable[Pair]) -> int:
    """Tokens of a row of `supervised_batch`."""
    return len(prompt) + sum(len(text) + len(response) for text, response in pairs)


def fitting(pairs: Iterable[Pair], room: int) -> list[Pair]:
    """The first pairs, up to one that `room` tokens have no room for."""
    found: list[Pair] = []
    for text, response in pairs:
        room -= len(text) + len(response)
        if room < 0:
            break
        found.append((text, response))
    return found


def supervised_batch(
    rows: Sequence[tuple[Sequence[int], Sequence[Pair]]],
    length: int,
    pictures: Sequence[Sequence[Picture]] | None = None,
    vision: VisionConfig | None = None,
    pack: int | None = None,
    few: bool = False,
    multiple: int = 1,
) -> Batch:
    """[B, length] tokens of rows, each (prompt, its (text, response) pairs). The pairs share the
    prompt, and do not see each other: the text goes on from the prompt, the response from the text. The
    loss is on the responses.

    pictures: what each prompt shows, none or several, for a model with this `vision`; the batch then
    has their pixels, and the vision tower learns too. pack: up to four of the given rows share one
    where they fit, B a multiple of this, if that makes B less. multiple: else B is one of this, by
    empty rows at the end. few: responses are few, and where they are at most half of a row no other
    tokens are scored. None of these changes a number but by rounding. UserError for a prompt whose
    image tokens are not those of its pictures. ValueError for a row that is longer than `length`."""
    totals = [row_length(*row) for row in rows]
    if max(totals, default=0) > length:
        raise ValueError(f"a row has {max(totals)} tokens, and the batch rows of {length}")
    places, B, most = [(b, 0) for b in range(len(rows))], _rounded(len(rows), multiple), 1
    if pack is not None:
        shared = first_fit(totals, length, _SHARED)
        fewer = _rounded(max(row for row, _ in shared) + 1, pack)
        if fewer < len(rows):
            places, B, most = shared, fewer, _SHARED
    tokens, branch = np.zeros((2, B, length), np.int32)
    positions = np.zeros((B, length) if pictures is None else (B, length, 3), np.int32)
    segment, sequence = np.full((2, B, length), -1, np.int32)
    source = np.tile(np.maximum(np.arange(length, dtype=np.int32) - 1, 0), (B, 1))
    first = 0
    for n, (prompt, pairs) in enumerate(rows):
        b, start = places[n]
        at, after = start + len(prompt), len(prompt)
        tokens[b, start:at] = prompt
        positions[b, start:at].T[...] = np.arange(after)
        if pictures is not None and vision is not None:
            grids = [picture.grid for picture in pictures[n]]
            positions[b, start:at], shift = prompt_positions(prompt, grids, vision)
            after += shift
        last = at - 1
        for k, (text, response) in enumerate(pairs):
            answer, end = at + len(text), at + len(text) + len(response)
            tokens[b, at:end] = [*text, *response]
            positions[b, at:end].T[...] = after + np.arange(end - at)
            branch[b, at:end] = k + 1
            source[b, at] = last
            sequence[b, answer:end] = first + k
            at = end
        segment[b, start:at] = n
        first += len(pairs)
    pixels = index = None
    if pictures is not None:
        assert vision is not None
        pixels, index = _shown(rows, places, B, length, pictures, vision, most)
    return Batch(
        *(tokens, positions, segment, branch, sequence, source),
        rollout_logprobs_BxT=np.zeros(tokens.shape, np.float32),
        image_index_BxT=index,
        pixels=pixels,
        scored_BxR=_scored(sequence) if few else None,
    )


def packed_batch(
    rows: Sequence[tuple[Sequence[int], Sequence[Pair]]],
    size: int,
    pieces: int,
    pictures: Sequence[Sequence[Picture]] | None = None,
    vision: VisionConfig | None = None,
) -> Batch:
    """`supervised_batch` of up to `size` rows with few responses, in one of few shapes, so that a
    training seldom compiles twice: packed if that makes B less. B is a multiple of `pieces`, over which
    it has to divide."""
    length = max(_PACKED, bucket(max(row_length(*row) for row in rows)))
    pack = _rounded(min(max(size // 8, 4), size), pieces)
    return supervised_batch(rows, length, pictures, vision, pack, few=True, multiple=pieces)


def _rounded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _shown(
    rows: Sequence[tuple[Sequence[int], Sequence[Pair]]],
    places: Sequence[tuple[int, int]],
    B: int,
    length: int,
    pictures: Sequence[Sequence[Picture]],
    vision: VisionConfig,
    most: int,
) -> tuple[Any, np.ndarray]:
    """The pixels of B rows, with room for so many small pictures each, and the image index."""
    there = [sorted((at, n) for n, (row, at) in enumerate(places) if row == b) for b in range(B)]
    pixels, found = layout(
        [[picture for _, n in row for picture in pictures[n]] for row in there],
        [[token for _, n in row for token in rows[n][0]] for row in there],
        *(vision, most),
    )
    index = np.full((B, length), -1, np.int32)
    for b, row in enumerate(there):
        done = 0
        for at, n in row:
            size = len(rows[n][0])
            index[b, at : at + size] = found[b][done : done + size]
            done += size
    return pixels, index


def _scored(sequence_BxT: np.ndarray) -> np.ndarray | None:
    """Where the responses are, in half as many places as a row has (one size, as each is compiled);
    None where a row has more."""
    B, T = sequence_BxT.shape
    response = sequence_BxT >= 0
    if not 0 < response.sum(axis=1).max(initial=0) <= T // 2:
        return None
    scored = np.full((B, T // 2), -1, np.int32)
    for b in range(B):
        at = np.flatnonzero(response[b])
        scored[b, : len(at)] = at
    return scored


@partial(
    jax.jit,
    static_argnames=("cfg", "tx", "accumulate", "chunk", "constrain", "trainable"),
    donate_argnames=("state",),
)
def supervised_step(
    state: TrainState,
    batch: Batch,
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    accumulate: int,
    chunk: int,
    constrain: Constrain,
    trainable: Mask = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimiser step on the mean negative log-likelihood of the batch's response tokens, nats."""
    ids = batch.sequence_ids_BxT
    weight = token_weights("token_mean", ids >= 0, ids, 0, 1)  # the last two play no part in it

    def loss(params, piece):
        batch, weight = piece
        logp, _ = token_logprobs(params, batch, jnp.float32(1.0), cfg, chunk, constrain)
        total = -(weight * logp).sum()
        return total, {"train/loss": total}

    grads, metrics = summed_gradient(loss, state.params, (batch, weight), accumulate, trainable)
    state, applied = apply_gradient(state, grads, tx, trainable)
    return TrainState(state.step + 1, state.params, state.opt_state), metrics | applied


def train(
    state: TrainState, batches: Iterable[Any], cfg: ModelConfig, tx, constrain: Constrain
) -> tuple[TrainState, float]:
    """Runs every batch; returns the state and the last loss."""
    metrics = {"train/loss": jnp.float32(jnp.nan)}
    for batch in batches:
        state, metrics = supervised_step(state, batch, cfg, tx, 1, 256, constrain)
    return state, float(metrics["train/loss"])
