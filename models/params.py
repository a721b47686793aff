"""One abstract tree describes every parameter; values, shardings and restore targets follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class ParamSpec:
    """A parameter before it has a value. `axes` are logical names, one per dimension, which
    `selfevolve_jax.sharding` maps to a mesh. `stddev` None means the constant `fill`."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stddev: float | None = None
    fill: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)


def shapes(specs: Any) -> Any:
    """The same tree with `jax.ShapeDtypeStruct` leaves."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(s.dtype)), specs)


def count(specs: Any) -> int:
    """Number of scalars in a tree of ParamSpec or arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(specs))


def initialise(specs: Any, key: jax.Array) -> Any:
    """Values for every ParamSpec, each from a key of its own (by position in the tree)."""
    leaves, treedef = jax.tree.flatten(specs)

    def draw(spec: ParamSpec, leaf_key: jax.Array) -> jax.Array:
        dtype = jnp.dtype(spec.dtype)
        if spec.stddev is None:
            return jnp.full(spec.shape, spec.fill, dtype)
        # Truncated at two sigma, and rescaled so that the standard deviation is the stated one.
        noise = jax.random.truncated_normal(leaf_key, -2.0, 2.0, spec.shape, jnp.float32)
        return (noise * (spec.stddev / 0.87962566)).astype(dtype)

    values = [draw(spec, jax.random.fold_in(key, i)) for i, spec in enumerate(leaves)]
    return jax.tree.unflatten(treedef, values)
