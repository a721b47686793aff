"""The policy-gradient step: rewards to advantages to gradients to a new state, in one jit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from models.config import ModelConfig
from models.decoder import Params
from models.shared import Constrain
from selfevolve_jax.grpo.advantages import ADVANTAGES, overlong_penalty
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.kl import ESTIMATORS
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.grpo.losses import LOSSES, Terms, sequence_sum, spread, token_weights
from selfevolve_jax.state import TrainState
from selfevolve_jax.trainable import Mask, join, split

Metrics = dict[str, jax.Array]


def pieces(tree: Any, n: int) -> Any:
    """Splits the first axis [B, …] into [n, B/n, …], interleaved: every device keeps its own rows, so
    under sharding the split moves nothing."""
    return jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), tree)


def summed_gradient(
    loss: Callable[[Params, Any], tuple[jax.Array, Metrics]],
    params: Params,
    batch: Any,
    n: int,
    trainable: Mask = None,
) -> tuple[Params, Metrics]:
    """Gradient, of the trainable leaves, and metrics of a loss that is a SUM over rows, n pieces at a
    time, float32."""
    mine, frozen = split(params, trainable)
    own_gradient = jax.grad(lambda mine, piece: loss(join(mine, frozen), piece), has_aux=True)
    gradient = partial(own_gradient, mine)
    if n == 1:
        return gradient(batch)

    def step(total, piece):
        grads, metrics = gradient(piece)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (grads, metrics)), None

    rows = pieces(batch, n)
    shape = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], rows))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shape)
    return jax.lax.scan(step, zeros, rows)[0]


def apply_gradient(
    state: TrainState,
    grads: Any,
    tx: optax.GradientTransformation,
    trainable: Mask = None,
    extra_ok: Any = True,
) -> tuple[TrainState, Metrics]:
    """One optimiser step; a non-finite gradient leaves parameters and optimiser as they were, and
    `train/finite` says so (the caller stops the run)."""
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    mine, frozen = split(state.params, trainable)
    updates, opt_state = tx.update(grads, state.opt_state, mine)
    new = (optax.apply_updates(mine, updates), opt_state)
    mine, opt_state = jax.tree.map(
        # Accumulated gradients are float32; bfloat16 moments must not become so with them.
        lambda new, old: jnp.where(finite & extra_ok, new.astype(old.dtype), old),
        new,
        (mine, state.opt_state),
    )
    metrics = {"train/grad_norm": norm, "train/finite": finite.astype(jnp.float32)}
    return replace(state, params=join(mine, frozen), opt_state=opt_state), metrics


@partial(jax.jit, static_argnames=("cfg", "grpo", "constrain"))
def score(
    params: Params,
    batch: Batch,
    temperature: jax.Array,
    cfg: ModelConfig,
    grpo: GRPOConfig,
    constrain: Constrain,
) -> jax.Array:
    """Log-probs [B, T] of a batch's response tokens under given parameters, without a gradient."""

    def one(piece: Batch) -> jax.Array:
        return token_logprobs(params, piece, temperature, cfg, grpo.logprob_chunk, constrain)[0]

    n = grpo.accumulate * grpo.minibatches
    scored = jax.lax.map(one, pieces(batch, n))
    return scored.swapaxes(0, 1).reshape(batch.tokens_BxT.shape)


@partial(
    jax.jit,
    static_argnames=("cfg", "grpo", "tx", "max_new_tokens", "constrain", "trainable"),
    donate_argnames=("state",),
)
def update_step(
    state: TrainState,
    batch: Batch,
    rewards_RxG: jax.Array,
    trained_RxG: jax.Array,
    temperature: jax.Array,
    cfg: ModelConfig,
    grpo: GRPOConfig,
    tx: optax.GradientTransformation,
    max_new_tokens: int,
    constrain: Constrain,
    trainable: Mask = None,
) -> tuple[TrainState, Metrics]:
    """Trains on one batch of samples: `grpo.minibatches` optimiser steps.

    rewards and trained come from a judge. The loss is Σ_t w_t · (policy loss + β·KL − c·entropy), the
    weights w being those of the aggregation over the whole optimiser step's batch, whatever the
    accumulation or sharding. A batch with nothing to train on changes nothing but the step.
    """
    n = rewards_RxG.size
    ids = batch.sequence_ids_BxT
    mask_BxT = spread(trained_RxG.reshape(-1), ids).astype(bool)
    advantage_BxT, reward_metrics = _advantages(
        batch, rewards_RxG, trained_RxG, grpo, max_new_tokens
    )

    def loss(params: Params, piece: tuple) -> tuple[jax.Array, Metrics]:
        batch, mask, advantage, weight = piece
        logp, entropy = token_logprobs(
            params, batch, temperature, cfg, grpo.logprob_chunk, constrain
        )
        # On-policy, π_old is π: the same numbers, without a second forward pass.
        old = batch.old_logprobs_BxT if grpo.minibatches > 1 else jax.lax.stop_gradient(logp)
        terms = Terms(logp, old, advantage, mask, batch.sequence_ids_BxT)
        policy = LOSSES[grpo.loss](terms, grpo, n)
        gap = jnp.where(mask, old - batch.rollout_logprobs_BxT, 0.0)
        per_token = policy.loss
        if grpo.importance_cap is not None:
            per_token *= jnp.minimum(jnp.exp(jnp.clip(gap, -20.0, 20.0)), grpo.importance_cap)
        metrics = {
            "policy/entropy": entropy,
            "policy/clip_fraction": policy.clipped.astype(jnp.float32),
            "policy/sampler_gap": jnp.abs(gap),
        }
        if grpo.kl_coef > 0:
            kl = ESTIMATORS[grpo.kl_estimator](logp, batch.ref_logprobs_BxT)
            metrics["kl/ref"] = kl
            metrics["kl/ref_nll"] = -batch.ref_logprobs_BxT
            if grpo.kl_in == "loss":
                per_token += grpo.kl_coef * kl
        if grpo.entropy_coef > 0:
            per_token -= grpo.entropy_coef * entropy
        total = jnp.where(mask, weight * per_token, 0.0).sum()
        sums = {k: jnp.where(mask, v, 0.0).sum() for k, v in metrics.items()}
        return total, sums | {"train/loss": total}

    metrics: Metrics = {}
    minibatches = pieces((batch, mask_BxT, advantage_BxT), grpo.minibatches)
    for i in range(grpo.minibatches):
        part, mask, advantage = jax.tree.map(lambda x, i=i: x[i], minibatches)
        weight = token_weights(grpo.aggregation, mask, part.sequence_ids_BxT, n, max_new_tokens)
        grads, sums = summed_gradient(
            loss, state.params, (part, mask, advantage, weight), grpo.accumulate, trainable
        )
        state, applied = apply_gradient(state, grads, tx, trainable, extra_ok=mask.any())
        tokens = jnp.maximum(mask.sum(), 1)
        sums = {k: v if k == "train/loss" else v / tokens for k, v in sums.items()}
        for k, v in (sums | applied).items():
            metrics[k] = metrics.get(k, 0.0) + v / grpo.minibatches
    metrics["train/tokens"] = mask_BxT.sum()
    return replace(state, step=state.step + 1), metrics | reward_metrics


def _advantages(
    batch: Batch,
    rewards_RxG: jax.Array,
    trained_RxG: jax.Array,
    grpo: GRPOConfig,
    max_new_tokens: int,
) -> tuple[jax.Array, Metrics]:
    """The advantage of every token [B, T], after the penalties that belong to the reward."""
    shape, ids = rewards_RxG.shape, batch.sequence_ids_BxT
    metrics: Metrics = {}
    if grpo.overlong_buffer:
        lengths = sequence_sum(jnp.ones(ids.shape), ids, rewards_RxG.size)
        penalty = overlong_penalty(
            lengths, max_new_tokens, grpo.overlong_buffer, grpo.overlong_factor
        )
        rewards_RxG = rewards_RxG + penalty.reshape(shape)
        metrics["reward/overlong"] = penalty.mean()
    if grpo.kl_coef > 0 and grpo.kl_in == "reward":
        kl = ESTIMATORS[grpo.kl_estimator](batch.old_logprobs_BxT, batch.ref_logprobs_BxT)
        kl_N = sequence_sum(kl, ids, rewards_RxG.size)
        rewards_RxG = rewards_RxG - grpo.kl_coef * kl_N.reshape(shape)
        metrics["reward/kl_penalty"] = grpo.kl_coef * kl_N.mean()
    advantage_RxG = ADVANTAGES[grpo.advantage](rewards_RxG, trained_RxG)
    metrics["policy/advantage_abs"] = jnp.abs(advantage_RxG).mean()
    return spread(advantage_RxG.reshape(-1), ids), metrics
