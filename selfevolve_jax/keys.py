"""What random numbers are for: each purpose has keys of its own, folded from (seed, purpose, step)."""

from __future__ import annotations

import jax

ROLLOUT, HELD_OUT, ADAPTERS, TEACHER = 1, 2, 3, 4


def step_key(seed: int, purpose: int, step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)
