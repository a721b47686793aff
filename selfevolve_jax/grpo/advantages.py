"""From rewards to advantages. All take rewards [R, G] and a mask of the samples in the loss [R, G].

Masked samples get 0 and count in no mean: a row with fewer trained samples uses its own number.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

EPS = 1e-6


def _group_mean(x_RxG: jax.Array, mask_RxG: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean [R, 1] over each row's masked-in samples, and their number [R, 1] (at least 1)."""
    n_Rx1 = jnp.maximum(mask_RxG.sum(axis=1, keepdims=True), 1)
    return jnp.where(mask_RxG, x_RxG, 0.0).sum(axis=1, keepdims=True) / n_Rx1, n_Rx1


def dr_grpo(rewards_RxG: jax.Array, mask_RxG: jax.Array) -> jax.Array:
    """R − μ (Liu et al. 2025, Dr. GRPO)."""
    mean, _ = _group_mean(rewards_RxG, mask_RxG)
    return jnp.where(mask_RxG, rewards_RxG - mean, 0.0)


def grpo(rewards_RxG: jax.Array, mask_RxG: jax.Array) -> jax.Array:
    """(R − μ) / (σ + 1e-6), σ the sample standard deviation (Shao et al. 2024, section 4.1)."""
    centred = dr_grpo(rewards_RxG, mask_RxG)
    n_Rx1 = mask_RxG.sum(axis=1, keepdims=True)
    var = (centred**2).sum(axis=1, keepdims=True) / jnp.maximum(n_Rx1 - 1, 1)
    return centred / (jnp.sqrt(var) + EPS)


def rloo(rewards_RxG: jax.Array, mask_RxG: jax.Array) -> jax.Array:
    """R minus the mean of the others = n/(n−1) · (R − μ) (Ahmadian et al. 2024). 0 for a lone one."""
    n_Rx1 = mask_RxG.sum(axis=1, keepdims=True)
    return dr_grpo(rewards_RxG, mask_RxG) * (n_Rx1 / jnp.maximum(n_Rx1 - 1, 1))


def _whiten(x_RxG: jax.Array, mask_RxG: jax.Array) -> jax.Array:
    flat_mean, n = _group_mean(x_RxG.reshape(1, -1), mask_RxG.reshape(1, -1))
    centred = jnp.where(mask_RxG, x_RxG - flat_mean, 0.0)
    return centred / (jnp.sqrt((centred**2).sum() / n[0, 0]) + EPS)


def reinforce_pp(rewards_RxG: jax.Array, mask_RxG: jax.Array) -> jax.Array:
    """Rewards whitened over the whole batch, without groups (Hu 2025, REINFORCE++)."""
    return _whiten(rewards_RxG, mask_RxG)


def reinforce_pp_baseline(rewards_RxG: jax.Array, mask_RxG: jax.Array) -> jax.Array:
    """R − μ of the group, then whitened over the whole batch (Hu 2025, its baseline form)."""
    return _whiten(dr_grpo(rewards_RxG, mask_RxG), mask_RxG)


ADVANTAGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce++": reinforce_pp,
    "reinforce++_baseline": reinforce_pp_baseline,
}


def overlong_penalty(lengths: jax.Array, max_length: int, buffer: int, factor: float) -> jax.Array:
    """min(−(len − (L − buffer)) / buffer · factor, 0), added to the reward (Yu et al. 2025, DAPO)."""
    return jnp.minimum(-(lengths - (max_length - buffer)) / buffer * factor, 0.0)
