"""Rotary position embedding with the scalings of the Llama and Qwen families."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from models.config import RopeScaling


def frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[np.ndarray, float]:
    """Angular frequencies [head_dim/2] in radians per position, and the factor on cos and sin.

    Follows Su et al. 2021 and, for the scalings, the sources named in `RopeScaling`.
    """
    freqs = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return freqs.astype(np.float32), 1.0
    if scaling.kind == "linear":
        return (freqs / scaling.factor).astype(np.float32), 1.0
    length = scaling.original_max_position
    if scaling.kind == "llama3":
        # Turns completed over the original length decide: many turns keep, few turns stretch.
        turns = length * freqs / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (freqs * (keep + (1 - keep) / scaling.factor)).astype(np.float32), 1.0

    def dimension_of(turns: float) -> float:
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    last = min(math.ceil(dimension_of(scaling.beta_slow)), head_dim - 1)
    ramp = (np.arange(head_dim // 2) - first) / max(last - first, 0.001)
    keep = 1 - np.clip(ramp, 0.0, 1.0)
    attention = scaling.attention_factor
    if attention is None:
        attention = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return (freqs * (keep + (1 - keep) / scaling.factor)).astype(np.float32), attention


def angles(
    positions: jax.Array,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None,
    sections: tuple[int, int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [B, T, head_dim/2], for integer positions [B, T].

    Positions [B, T, 3] are (time, height, width): the frequencies, in order, are dealt out to the
    three by `sections` in contiguous runs (M-RoPE, Qwen2-VL, arXiv 2409.12191, section 2.1). Three
    equal coordinates give what one position gives.
    """
    freqs, factor = frequencies(head_dim, theta, scaling)
    if positions.ndim == 3:
        assert sections is not None, "three coordinates need mrope_sections"
        phase = positions[..., np.repeat(np.arange(3), sections)].astype(jnp.float32) * freqs
    else:
        phase = positions[..., None].astype(jnp.float32) * freqs
    return jnp.cos(phase) * factor, jnp.sin(phase) * factor


def rotate(x_BxTxHxK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + K/2), the layout of Hugging Face checkpoints; computed in float32."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    left, right = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x_BxTxHxK.dtype)
