"""Low-rank adapters (LoRA, Hu et al. 2021, section 4.1): y = x·W + alpha/rank · (x·A)·B.

Adapters are leaves of the parameter tree, stacked over layers beside the weights they adapt, so that
scan, sharding and checkpoints treat them like any other. Sampler and trainer both run them unmerged:
the two then agree to rounding, whatever the weights' dtype. `merge` is for export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from models.config import LoraConfig, ModelConfig
from models.params import ParamSpec


@jax.tree_util.register_dataclass
@dataclass
class Adapter:
    a: Any  # [L, in ..., rank]
    b: Any  # [L, rank, out ...]


Adapters = dict[str, Adapter]

# How many axes of a weight, after L, the input is summed over; 1 where not told.
_INPUT_AXES = {"o": 2}


def adapter_specs(layers: Any, lora: LoraConfig) -> Adapters:
    """Adapters for the targets among `layers`' fields, a tree of ParamSpec, float32 whatever the
    weights are: they are what is trained. A starts as in the authors' code, B at zero, so that a
    fresh adapter changes nothing."""
    fused = not hasattr(layers, "q")
    names = dict.fromkeys("qkv" if fused and t in ("q", "k", "v") else t for t in lora.targets)

    def adapter(name: str) -> Adapter:
        shape, axes = getattr(layers, name).shape, getattr(layers, name).axes
        n = 1 + _INPUT_AXES.get(name, 1)
        fan_in = math.prod(shape[1:n])
        a = ParamSpec((*shape[:n], lora.rank), (*axes[:n], None), (3 * fan_in) ** -0.5)
        # stddev 0, not a constant: B is a matrix to the weight decay.
        b = ParamSpec((shape[0], lora.rank, *shape[n:]), (axes[0], None, *axes[n:]), 0.0)
        return Adapter(a, b)

    return {name: adapter(name) for name in names}


def project(equation: str, name: str, h: jax.Array, layer: Any, lora: LoraConfig) -> jax.Array:
    """einsum of `h` with one layer's weight `name`, in h's dtype, and its adapter if it has one."""
    out = jnp.einsum(equation, h, getattr(layer, name).astype(h.dtype))
    if not layer.lora or name not in layer.lora:
        return out
    adapter = layer.lora[name]
    inputs, weight, outputs = equation.replace("->", ",").split(",")
    summed = "".join(axis for axis in weight if axis not in outputs)
    kept = "".join(axis for axis in inputs if axis not in summed)
    made = "".join(axis for axis in weight if axis in outputs)
    low = jnp.einsum(f"{inputs},{summed}z->{kept}z", h, adapter.a.astype(h.dtype))
    up = jnp.einsum(f"{kept}z,z{made}->{outputs}", low, adapter.b.astype(h.dtype))
    return out + lora.alpha / lora.rank * up


def merge(params: Any, cfg: ModelConfig) -> tuple[Any, ModelConfig]:
    """Parameters whose weights hold what their adapters added, and the config without adapters. The
    sum is taken in float32 and kept in the weights' dtype."""

    def merged(layers: Any) -> Any:
        changed = {}
        for name, adapter in (layers.lora or {}).items():
            weight = getattr(layers, name)
            L, r = weight.shape[0], cfg.lora.rank
            a = adapter.a.reshape(L, -1, r).astype(jnp.float32)
            b = adapter.b.reshape(L, r, -1).astype(jnp.float32)
            delta = (cfg.lora.alpha / r * a @ b).reshape(weight.shape)
            changed[name] = (weight.astype(jnp.float32) + delta).astype(weight.dtype)
        return replace(layers, lora=None, **changed)

    vision = params.vision
    if vision is not None:
        vision = replace(vision, layers=merged(vision.layers))
    new = replace(params, layers=merged(params.layers), vision=vision)
    return new, replace(cfg, lora=LoraConfig())
