"""Per-token estimators of KL(π ‖ π_ref) from samples of π (Schulman 2020, "Approximating KL")."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def k1(logp: jax.Array, ref: jax.Array) -> jax.Array:
    """log π − log π_ref: unbiased, may be negative."""
    return logp - ref


def k2(logp: jax.Array, ref: jax.Array) -> jax.Array:
    """½ (log π_ref − log π)²: biased, low variance; its gradient is that of the true KL."""
    return 0.5 * (ref - logp) ** 2


def k3(logp: jax.Array, ref: jax.Array) -> jax.Array:
    """e^δ − δ − 1 with δ = log π_ref − log π: unbiased, never negative. δ is held to ±20 and the
    result to ±10, so that one token that the reference finds absurd cannot own the step."""
    delta = jnp.clip(ref - logp, -20.0, 20.0)
    return jnp.clip(jnp.exp(delta) - delta - 1.0, -10.0, 10.0)


ESTIMATORS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"k1": k1, "k2": k2, "k3": k3}
