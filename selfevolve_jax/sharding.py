"""The device mesh, and the rules that map logical axes to it. The only place that names mesh axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from models.params import ParamSpec
from models.shared import Constrain, unconstrained
from selfevolve_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Batches are split over data and fsdp; fsdp also splits every weight once
# along d_model (ZeRO-3); tensor splits heads, the MLP's inner axis and the vocabulary (Megatron).
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "length": (),
    "layers": (),
}


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be −1, "the rest of the devices"."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh over all devices. UserError if the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    # Auto axes: XLA propagates shardings from parameters, inputs and the pinned activations.
    return jax.make_mesh(
        mesh_sizes(config, len(devices)),
        AXES,
        devices=devices,
        axis_types=(AxisType.Auto,) * len(AXES),
    )


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """A mesh to lay shapes out on, of devices that are not there."""
    return AbstractMesh(mesh_sizes(config, devices), AXES)


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """The sizes of `AXES`, -1 resolved. UserError if they do not multiply to the devices."""
    sizes = {name: getattr(config, name) for name in AXES}
    asked = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{asked}: each size must be positive, or -1 for the rest of the devices.")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(f"{asked}: only one axis can be -1. Give {open_axes[0]} a size.")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        sizes[open_axes[0]] = max(devices // fixed, 1)
    if math.prod(sizes.values()) != devices:
        rule, fix = (
            (f"which must divide {devices}", "Make them smaller.")
            if open_axes
            else (f"not to {devices}", "Use mesh.data=-1 to take the rest.")
        )
        raise UserError(
            f"{asked} does not fit {devices} device(s): the fixed sizes multiply to {fixed}, "
            f"{rule}. {fix}"
        )
    return tuple(sizes.values())


def _mesh_axes(axes: tuple[str | None, ...]) -> list[tuple[str, ...]]:
    """The mesh axes of each dimension. A mesh axis is used once; the first dimension that asks wins."""
    used: set[str] = set()
    parts = []
    for axis in axes:
        free = tuple(a for a in (RULES[axis] if axis else ()) if a not in used)
        used.update(free)
        parts.append(free)
    return parts


def named(mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...], name: str):
    """The sharding of one array; UserError if a dimension does not divide over its mesh axes."""
    parts = _mesh_axes(axes)
    for axis, size, part in zip(axes, shape, parts, strict=True):
        ways = math.prod(mesh.shape[a] for a in part)
        if size % ways:
            over = "×".join(f"{a}={mesh.shape[a]}" for a in part)
            raise UserError(
                f"{name}: logical axis {axis!r} has size {size}, which does not divide over mesh "
                f"axes {over}. Change the size, or make the mesh axis a divisor of {size}."
            )
    return NamedSharding(mesh, PartitionSpec(*parts))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """The number of pieces that a batch axis is split into; batch sizes must be multiples of it."""
    return math.prod(mesh.shape[a] for a in RULES["batch"])


def tree_shardings(specs: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every ParamSpec of a tree."""

    def one(path, spec: ParamSpec):
        return named(mesh, spec.axes, spec.shape, "parameter " + jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(one, specs)


@dataclass(frozen=True)
class _OnMesh(Constrain):
    """Activations split over a mesh."""

    mesh: Mesh = field(kw_only=True)

    def __call__(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, named(self.mesh, axes, x.shape, "activation"))

    def local(self, function: Callable, in_axes: tuple, out_axes: tuple) -> Callable:
        *inputs, output = (PartitionSpec(*_mesh_axes(axes)) for axes in (*in_axes, out_axes))
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=tuple(inputs), out_specs=output, check_vma=False
        )


@functools.lru_cache
def constrainer(mesh: Mesh) -> Constrain:
    """Pins activations to logical axes on `mesh`; one object per mesh, as it is a static argument
    of jitted functions and a new one would compile them again."""
    platform = mesh.devices.flat[0].platform
    if mesh.size > 1:
        return _OnMesh(platform, mesh=mesh)
    return unconstrained if platform == unconstrained.platform else Constrain(platform)


def put_batch(tree: Any, mesh: Mesh) -> Any:
    """Host arrays (the same on every process) to devices, the first axis split as a batch."""

    def one(x: np.ndarray) -> jax.Array:
        sharding = named(mesh, ("batch",) + (None,) * (x.ndim - 1), x.shape, "batch")
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree)


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Host values (the same on every process) to every device."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(
            np.shape(x), replicated(mesh), lambda index: np.asarray(x)[index]
        ),
        tree,
    )


def to_host(tree: Any) -> Any:
    """Whole arrays as numpy on every process, also when their shards live on several hosts."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
