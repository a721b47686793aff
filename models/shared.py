"""What the decoder and the vision tower have in common."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Pins an activation to logical axes; the identity on one device. Given by the caller, so that models
# stay free of any mesh: `constrain(x, ("batch", "length", "embed")) -> x`.
Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]


def unconstrained(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    del axes
    return x


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis (Zhang & Sennrich 2019), computed in float32."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(step: Callable, remat: str) -> Callable:
    """A scan's body that keeps for the backward pass what `ModelConfig.remat` says."""
    if remat == "none":
        return step
    return jax.checkpoint(step, policy=_REMAT_POLICIES[remat], prevent_cse=False)
