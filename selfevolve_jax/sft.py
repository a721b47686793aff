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
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.grpo.losses import token_weights
from selfevolve_jax.grpo.update import apply_gradient, summed_gradient
from selfevolve_jax.images import Picture, layout, prompt_positions
from selfevolve_jax.state import TrainState
from selfevolve_jax.trainable import Mask

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a text and of the response to it


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
) -> Batch:
    """[B, length] tokens of B rows, each (prompt, its (text, response) pairs). The pairs share the
    prompt, and do not see each other: the text goes on from the prompt, the response from the text. The
    loss is on the responses.

    pictures: what each prompt shows, none or several, for a model with this `vision`; the batch then
    has their pixels, and the vision tower learns too. UserError for a prompt whose image tokens are
    not those of its pictures. ValueError for a row that is longer than `length`."""
    B, first = len(rows), 0
    tokens, branch = np.zeros((2, B, length), np.int32)
    positions = np.zeros((B, length) if pictures is None else (B, length, 3), np.int32)
    segment, sequence = np.full((2, B, length), -1, np.int32)
    source = np.tile(np.maximum(np.arange(length, dtype=np.int32) - 1, 0), (B, 1))
    pixels = index = None
    if pictures is not None:
        assert vision is not None
        pixels, places = layout(pictures, [prompt for prompt, _ in rows], vision)
        index = np.full((B, length), -1, np.int32)
        for b, place in enumerate(places):
            index[b, : len(place)] = place
    for b, (prompt, pairs) in enumerate(rows):
        n = after = len(prompt)
        tokens[b, :n] = prompt
        positions[b, :n].T[...] = np.arange(n)
        if pictures is not None and vision is not None:
            grids = [picture.grid for picture in pictures[b]]
            positions[b, :n], shift = prompt_positions(prompt, grids, vision)
            after += shift
        at = n
        for k, (text, response) in enumerate(pairs):
            answer, end = at + len(text), at + len(text) + len(response)
            tokens[b, at:end] = [*text, *response]
            positions[b, at:end].T[...] = after + np.arange(end - at)
            branch[b, at:end] = k + 1
            source[b, at] = n - 1
            sequence[b, answer:end] = first + k
            at = end
        segment[b, :at] = b
        first += len(pairs)
    return Batch(
        *(tokens, positions, segment, branch, sequence, source),
        rollout_logprobs_BxT=np.zeros(tokens.shape, np.float32),
        image_index_BxT=index,
        pixels=pixels,
    )


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
