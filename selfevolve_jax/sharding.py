"""The device mesh, and the rules that map logical axes to it. The only place that names mesh axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    """Sizes of the mesh axes; one of them may be −1, "the rest of the devices".

    rollout: so many devices, the last ones (of each process), are kept for the rollouts and the
    evaluations of a training run, and the rest train; 0: both use all. rollout_tensor: pieces that a
    weight is split into on those, as `tensor`; what they multiply to splits the samples."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rollout: int = 0
    rollout_tensor: int = 1


def make_meshes(config: MeshConfig, devices: list[Any] | None = None) -> tuple[Mesh, Mesh | None]:
    """The training mesh, and that of the rollouts, None where they share the first. UserError if the
    sizes do not fit the devices."""
    if not config.rollout and config.rollout_tensor == 1:
        return make_mesh(config) if devices is None else make_mesh(config, devices), None
    devices = jax.devices() if devices is None else devices
    processes = sorted({d.process_index for d in devices})
    n, each = len(devices), config.rollout // len(processes)
    asked = f"mesh.rollout={config.rollout}, mesh.rollout_tensor={config.rollout_tensor}"
    if not 0 < config.rollout < n:
        raise UserError(
            f"{asked}: of {n} device(s), 1 to {n - 1} can be kept for rollouts, so that some are left "
            "to train. mesh.rollout=0 with mesh.rollout_tensor=1 shares them all."
        )
    if config.rollout_tensor < 1 or config.rollout % config.rollout_tensor:
        raise UserError(f"{asked}: the second must be a positive divisor of the first.")
    if config.rollout % len(processes):
        raise UserError(
            f"{asked}: each of the {len(processes)} processes gives as many of its devices. Make "
            f"mesh.rollout a multiple of {len(processes)}."
        )
    own = [[d for d in devices if d.process_index == p] for p in processes]
    try:
        training = make_mesh(
            replace(config, rollout=0, rollout_tensor=1), [d for ds in own for d in ds[:-each]]
        )
    except UserError as error:
        raise UserError(f"{asked} leaves {n - config.rollout} devices to train: {error}") from error
    rollouts = MeshConfig(tensor=config.rollout_tensor)
    return training, make_mesh(rollouts, [d for ds in own for d in ds[-each:]])


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
    if config.rollout or config.rollout_tensor != 1:
        raise UserError(
            f"mesh.rollout={config.rollout}, mesh.rollout_tensor={config.rollout_tensor}: devices are "
            "split only by what trains on rollouts (selfevolve srt, mm-upt). Leave both out here."
        )
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


def check_attention(kind: str, mesh: Mesh) -> None:
    """UserError for a kind of attention (`ModelConfig.attention`) that the devices do not have."""
    platform = mesh.devices.flat[0].platform
    needed = {"flash": "tpu", "cudnn": "gpu"}.get(kind)
    if needed and needed != platform:
        raise UserError(
            f"attention={kind} needs a {needed.upper()}, and the devices here are of kind {platform}. "
            "Use auto, which chooses by device, or plain."
        )


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


def reshard(tree: Any, shardings: Any) -> Any:
    """Arrays to a mesh of other devices, each process from its own devices to its own. Nothing passes
    through the host, as all would in `jax.device_put` where the pieces differ in shape: such an array
    is first made whole on each device it comes from."""

    def one(x: jax.Array, target: NamedSharding) -> jax.Array:
        all_of_it = tuple((0, n) for n in x.shape)
        wanted, held = (
            {d: _bounds(i, x.shape) for d, i in s.devices_indices_map(x.shape).items()}
            for s in (target, x.sharding)
        )
        there = {(d.process_index, bounds) for d, bounds in held.items()}
        # Of all processes, as all must take part in making it whole.
        joined = not all(
            {(d.process_index, bounds), (d.process_index, all_of_it)} & there
            for d, bounds in wanted.items()
        )
        source = _whole(x.sharding.mesh)(x) if joined else x  # pyright: ignore[reportAttributeAccessIssue]
        pieces = _local_pieces(source)
        arrays = []
        mine = [d for d in wanted if d in target.addressable_devices]
        for i, (device, bounds) in enumerate((d, wanted[d]) for d in mine):
            copies = pieces.get(bounds) or pieces[all_of_it]
            piece = copies[i % len(copies)]  # each gives in its turn
            if bounds not in pieces:
                piece = jax.lax.slice(piece, *zip(*bounds, strict=True))
            arrays.append(jax.device_put(piece, device))
        moved = jax.make_array_from_single_device_arrays(x.shape, target, arrays)
        # One array at a time is whole: there may be no room for all of them.
        return moved.block_until_ready() if joined else moved

    return jax.tree.map(one, tree, shardings)


def _local_pieces(x: jax.Array) -> dict[tuple[tuple[int, int], ...], list[jax.Array]]:
    """This process's shards by the bounds of what they hold."""
    found: dict[tuple[tuple[int, int], ...], list[jax.Array]] = {}
    for shard in x.addressable_shards:
        found.setdefault(_bounds(shard.index, x.shape), []).append(shard.data)
    return found


def _bounds(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


@functools.lru_cache
def _whole(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def to_host(tree: Any) -> Any:
    """Whole arrays as numpy on every process, also when their shards live on several hosts; what is on
    the host already stays as it is."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    leaves, structure = jax.tree.flatten(tree)
    apart = [
        i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.is_fully_replicated
    ]
    if apart:
        mesh = leaves[apart[0]].sharding.mesh
        whole = _gathered(tuple(leaves[i] for i in apart), replicated(mesh))
        for i, x in zip(apart, whole, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(structure, jax.device_get([_one_copy(x) for x in leaves]))


@functools.partial(jax.jit, static_argnames="where")
def _gathered(arrays: tuple[jax.Array, ...], where: NamedSharding) -> tuple[jax.Array, ...]:
    return jax.lax.with_sharding_constraint(arrays, where)


def _one_copy(x: Any) -> Any:
    return x.addressable_data(0) if isinstance(x, jax.Array) else x
