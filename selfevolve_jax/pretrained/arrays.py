"""Parameters from a source that is read in parts, straight into arrays sharded over the mesh.

What the host holds at a time is one tensor's local shards and one block of the source: a stacked
array is made empty on the devices, and each layer is written into it in place (its buffer is donated,
so that no second one appears).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import decoder
from models.config import ModelConfig
from models.params import ParamSpec
from selfevolve_jax import sharding
from selfevolve_jax.pretrained import names

# `read(name, rows, columns)`: that part of the Hugging Face tensor `name`, of which all dimensions
# after the first are columns; [rows] of a vector. Any float dtype: it is cast to the parameter's.
Read = Callable[[str, slice, slice], np.ndarray]

BLOCK_BYTES = 16 << 20  # of a source that are read at a time
_TILE = 32  # rows transposed at a time, so that both sides of the copy stay in the cache


def fill(cfg: ModelConfig, mesh: Mesh, read: Read) -> decoder.Params:
    """All parameters of `cfg` in `cfg.param_dtype`, from the tensors that `names.tensors(cfg)` lists.

    Each process calls `read` for the parts that its own devices hold, one tensor after the other.
    """
    specs = decoder.abstract_params(cfg)
    weights = names.table(cfg)

    def one(path, spec: ParamSpec, where: NamedSharding) -> jax.Array:
        weight = weights[".".join(key.name for key in path)]
        dtype = jnp.dtype(spec.dtype)
        if not weight.stacked:
            return jax.block_until_ready(_tensor(spec.shape, where, dtype, weight, None, read))
        whole = jnp.zeros(spec.shape, dtype, device=where)
        layer_sharding = NamedSharding(mesh, PartitionSpec(*where.spec[1:]))
        for i in range(spec.shape[0]):
            layer = _tensor(spec.shape[1:], layer_sharding, dtype, weight, i, read)
            # Waits: else the host would run ahead and hold many layers.
            whole = jax.block_until_ready(_write(whole, layer, np.int32(i), where=where))
        return whole

    return jax.tree_util.tree_map_with_path(one, specs, sharding.tree_shardings(specs, mesh))


@partial(jax.jit, donate_argnums=0, static_argnames="where")
def _write(whole: jax.Array, layer: jax.Array, i: jax.Array, *, where: NamedSharding) -> jax.Array:
    written = jax.lax.dynamic_update_index_in_dim(whole, layer, i, 0)
    return jax.lax.with_sharding_constraint(written, where)


def _tensor(
    shape: tuple[int, ...],
    where: NamedSharding,
    dtype: np.dtype,
    weight: names.Weight,
    layer: int | None,
    read: Read,
) -> jax.Array:
    """One tensor in our layout, [in..., out...]; of it, the host makes what its devices hold."""
    name = weight.name.format(layer)
    made: dict[tuple, np.ndarray] = {}  # devices along the data axis share a shard

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index, shape, strict=True))
        if bounds not in made:
            made[bounds] = _shard(shape, bounds, dtype, weight, name, read)
        return made[bounds]

    return jax.make_array_from_callback(shape, where, shard)


def _shard(
    shape: tuple[int, ...],
    bounds: tuple[tuple[int, int], ...],
    dtype: np.dtype,
    weight: names.Weight,
    name: str,
    read: Read,
) -> np.ndarray:
    out = _aligned([stop - start for start, stop in bounds], dtype)
    rows = runs([shape[a] for a in weight.rows], [bounds[a] for a in weight.rows])
    columns = runs([shape[a] for a in weight.columns], [bounds[a] for a in weight.columns])
    n_columns = sum(stop - start for start, stop in columns)
    there = out.reshape(n_columns, -1).T if weight.turned else out.reshape(-1, n_columns)
    height = max(1, BLOCK_BYTES // (4 * math.prod(weight.shape[1:])))
    row = 0
    for start, stop in _blocks(rows, height):
        column = 0
        for left, right in columns:
            block = read(name, slice(start, stop), slice(left, right))
            block = block.reshape(stop - start, right - left)
            into = there[row : row + stop - start, column : column + right - left]
            if block.dtype == dtype:  # as integers, which numpy copies faster than bfloat16
                into, block = (x.view(f"u{dtype.itemsize}") for x in (into, block))
            for i in range(0, stop - start, _TILE):
                into[i : i + _TILE] = block[i : i + _TILE]
            column += right - left
        row += stop - start
    return out


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: jax's CPU devices take such a one over,
    and copy any other."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size].view(dtype).reshape(shape)


def runs(shape: Sequence[int], bounds: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Contiguous runs (start, stop), in order, of the flattened array that hold the given box."""
    if not shape:
        return [(0, 1)]
    # Axes that are taken whole, from the last one on, only lengthen the runs of those before them.
    cut = len(shape)
    while cut > 1 and bounds[cut - 1] == (0, shape[cut - 1]):
        cut -= 1
    inner = math.prod(shape[cut:])
    steps = [math.prod(shape[a + 1 : cut]) for a in range(cut)]
    first, last = bounds[cut - 1]
    found = []
    for outer in itertools.product(*(range(*bounds[a]) for a in range(cut - 1))):
        base = sum(i * step for i, step in zip(outer, steps, strict=False))
        found.append(((base + first) * inner, (base + last) * inner))
    return found


def _blocks(found: list[tuple[int, int]], height: int) -> Iterator[tuple[int, int]]:
    for start, stop in found:
        for i in range(start, stop, height):
            yield i, min(i + height, stop)
