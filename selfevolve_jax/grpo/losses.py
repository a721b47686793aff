"""Policy losses per token and the weights that add them up. r = π/π_old, A the advantage.

A loss takes `Terms` and returns `TokenLoss`; a new variant is ten lines and an entry in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from selfevolve_jax.grpo.config import GRPOConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Terms:
    """What a token's loss is made of, all [B, T]; `n_sequences` is the static number N."""

    logp: jax.Array
    old_logp: jax.Array
    advantage: jax.Array
    mask: jax.Array  # bool: response tokens of trained samples
    sequence_ids: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenLoss:
    loss: jax.Array  # [B, T]
    clipped: jax.Array  # bool [B, T]: the clip decided the value


def sequence_sum(x_BxT: jax.Array, sequence_ids_BxT: jax.Array, n: int) -> jax.Array:
    """Sums over the tokens of each of n sequences, [n]; padding (id −1) is left out."""
    ids = sequence_ids_BxT.reshape(-1)
    return jax.ops.segment_sum(
        jnp.where(ids >= 0, x_BxT.reshape(-1), 0.0), jnp.where(ids >= 0, ids, 0), n
    )


def spread(x_N: jax.Array, sequence_ids_BxT: jax.Array) -> jax.Array:
    """Each token gets its sequence's value, [B, T]; 0 at padding."""
    return jnp.where(sequence_ids_BxT >= 0, x_N[jnp.maximum(sequence_ids_BxT, 0)], 0)


def _ratio(terms: Terms) -> jax.Array:
    # The exponent is held, so that a token that became impossible cannot make inf · 0 = NaN.
    return jnp.exp(jnp.clip(jnp.where(terms.mask, terms.logp - terms.old_logp, 0.0), -20.0, 20.0))


def _clipped_surrogate(ratio: jax.Array, advantage: jax.Array, cfg: GRPOConfig) -> TokenLoss:
    plain = -ratio * advantage
    held = -jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high) * advantage
    loss, clipped = jnp.maximum(plain, held), held > plain
    if cfg.dual_clip is not None:
        bound = -cfg.dual_clip * advantage
        beyond = (advantage < 0) & (loss > bound)
        loss, clipped = jnp.where(beyond, bound, loss), clipped | beyond
    return TokenLoss(loss, clipped)


def ppo(terms: Terms, cfg: GRPOConfig, n_sequences: int) -> TokenLoss:
    """max(−rA, −clip(r, 1−ε_l, 1+ε_h)A) (Schulman et al. 2017); for A < 0 held to −cA (dual clip,
    Ye et al. 2020). ε_h > ε_l is DAPO's clip-higher (Yu et al. 2025)."""
    del n_sequences
    return _clipped_surrogate(_ratio(terms), terms.advantage, cfg)


def gspo(terms: Terms, cfg: GRPOConfig, n_sequences: int) -> TokenLoss:
    """The sequence ratio exp(mean_t log r), with each token's own gradient through
    log π − sg(log π) (Zheng et al. 2025, GSPO-token)."""
    log_ratio = jnp.where(terms.mask, terms.logp - terms.old_logp, 0.0)
    count = sequence_sum(terms.mask.astype(jnp.float32), terms.sequence_ids, n_sequences)
    total = sequence_sum(log_ratio, terms.sequence_ids, n_sequences)
    mean = spread(jax.lax.stop_gradient(total / jnp.maximum(count, 1)), terms.sequence_ids)
    own = jnp.where(terms.mask, terms.logp - jax.lax.stop_gradient(terms.logp), 0.0)
    return _clipped_surrogate(jnp.exp(jnp.clip(mean + own, -20.0, 20.0)), terms.advantage, cfg)


def cispo(terms: Terms, cfg: GRPOConfig, n_sequences: int) -> TokenLoss:
    """−sg(clip(r)) · A · log π: clipped tokens keep a gradient (MiniMax-M1, 2025)."""
    del n_sequences
    ratio = _ratio(terms)
    held = jnp.clip(ratio, 1 - cfg.clip_low, 1 + cfg.clip_high)
    logp = jnp.where(terms.mask, terms.logp, 0.0)
    return TokenLoss(-jax.lax.stop_gradient(held) * terms.advantage * logp, held != ratio)


LOSSES: dict[str, Callable[[Terms, GRPOConfig, int], TokenLoss]] = {
    "ppo": ppo,
    "gspo": gspo,
    "cispo": cispo,
}


def token_weights(
    aggregation: str, mask_BxT: jax.Array, sequence_ids_BxT: jax.Array, n: int, max_length: int
) -> jax.Array:
    """The weight [B, T] of each token's loss in the scalar loss Σ w·loss, over the GLOBAL batch.

    As weights, an aggregation is the same under accumulation, packing and sharding. Sequences with
    no token in the mask leave every denominator. max_length: the fixed length that
    seq_mean_token_sum_norm divides by (Dr. GRPO).
    """
    mask = mask_BxT.astype(jnp.float32)
    if aggregation == "token_mean":
        return mask / jnp.maximum(mask.sum(), 1)
    lengths_N = sequence_sum(mask, sequence_ids_BxT, n)
    sequences = jnp.maximum((lengths_N > 0).sum(), 1)
    if aggregation == "seq_mean_token_sum":
        return mask / sequences
    if aggregation == "seq_mean_token_mean":
        return mask / spread(jnp.maximum(lengths_N, 1), sequence_ids_BxT).clip(1) / sequences
    assert aggregation == "seq_mean_token_sum_norm", aggregation
    return mask / (sequences * max_length)
