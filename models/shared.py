"""What the decoder and the vision tower have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Constrain:
    """Where activations live. Given by the caller, so that models stay free of any mesh; this one is
    a single device. Hashable, as jitted functions take it as static.

    platform: of the devices that the program is compiled for ("cpu", "gpu", "tpu"), which need not
    be those of the machine that compiles it.
    """

    platform: str = "cpu"

    def __call__(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Pins x to logical axes: `constrain(x, ("batch", "length", None)) -> x`."""
        del axes
        return x

    def local(self, function: Callable, in_axes: tuple, out_axes: tuple) -> Callable:
        """`function` run by each device on its own piece of every argument; in_axes: the logical axes
        of each argument, out_axes: those of the result."""
        del in_axes, out_axes
        return function


unconstrained = Constrain()


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
