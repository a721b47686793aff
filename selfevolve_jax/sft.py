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


def supervised_batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    length: int,
    pictures: Sequence[Sequence[Picture]] | None = None,
    vision: VisionConfig | None = None,
) -> Batch:
    """One pair a row, [B, length]; the loss is on the responses.

    pictures: what each prompt shows, none or several, for a model with this `vision`; the batch then
    has their pixels, and the vision tower learns too. UserError for a prompt whose image tokens are
    not those of its pictures."""
    B = len(pairs)
    tokens, branch = np.zeros((2, B, length), np.int32)
    positions = np.zeros((B, length) if pictures is None else (B, length, 3), np.int32)
    segment, sequence = np.full((2, B, length), -1, np.int32)
    pixels = index = None
    if pictures is not None:
        assert vision is not None
        pixels, places = layout(pictures, [prompt for prompt, _ in pairs], vision)
        index = np.full((B, length), -1, np.int32)
        for b, place in enumerate(places):
            index[b, : len(place)] = place
    for b, (prompt, answer) in enumerate(pairs):
        end, after = len(prompt) + len(answer), len(prompt)
        tokens[b, :end] = [*prompt, *answer]
        positions[b, :after].T[...] = np.arange(after)
        if pictures is not None and vision is not None:
            grids = [picture.grid for picture in pictures[b]]
            positions[b, :after], shift = prompt_positions(prompt, grids, vision)
            after += shift
        positions[b, len(prompt) : end].T[...] = after + np.arange(len(answer))
        segment[b, :end] = b
        sequence[b, len(prompt) : end] = b
    source = np.broadcast_to(np.maximum(np.arange(length, dtype=np.int32) - 1, 0), tokens.shape)
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
    n = batch.tokens_BxT.shape[0]
    ids = batch.sequence_ids_BxT
    weight = token_weights("token_mean", ids >= 0, ids, n, 1)

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
