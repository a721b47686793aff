"""What training changes: parameters, optimiser state and the step, as one pytree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from models import decoder, params
from models.config import LoraConfig, ModelConfig
from selfevolve_jax import sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.trainable import Mask, join, split


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    step: Any  # int32 scalar: batches of samples trained on so far
    params: Any  # decoder.Params; optax's types know mappings only
    opt_state: Any
    teacher: Any = None  # float32 moving average of what is trained, where a run has a teacher


def abstract_state(
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    trainable: Mask = None,
    teacher: bool = False,
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: what a checkpoint is restored into.

    Optimiser moments and the teacher are sharded as the parameters they belong to; frozen ones have
    none."""
    specs = decoder.abstract_params(cfg)
    shapes = params.shapes(specs)
    shardings = sharding.tree_shardings(specs, mesh)
    everywhere = sharding.replicated(mesh)

    opt_state = optax.tree.map_params(
        tx,
        placed,
        jax.eval_shape(tx.init, split(shapes, trainable)[0]),
        split(shardings, trainable)[0],
        transform_non_params=lambda leaf: placed(leaf, everywhere),
    )
    placed_params = jax.tree.map(placed, shapes, shardings)

    return TrainState(
        step=placed(jax.ShapeDtypeStruct((), jnp.int32), everywhere),
        params=placed_params,
        opt_state=opt_state,
        teacher=jax.tree.map(in_float32, split(placed_params, trainable)[0]) if teacher else None,
    )


def placed(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    """An array's shape and dtype, on `where`."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def in_float32(leaf: Any) -> jax.ShapeDtypeStruct:
    """The same array as float32: a gradient, or a teacher."""
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=leaf.sharding)


def shardings_of(abstract: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_params(cfg: ModelConfig, key: jax.Array, mesh: Mesh) -> decoder.Params:
    """Fresh parameters, made on the devices that will hold them."""
    specs = decoder.abstract_params(cfg)
    make = jax.jit(
        partial(params.initialise, specs), out_shardings=sharding.tree_shardings(specs, mesh)
    )
    return make(key)


def add_adapters(
    weights: decoder.Params, cfg: ModelConfig, key: jax.Array, mesh: Mesh
) -> decoder.Params:
    """The same weights with the fresh adapters of `cfg.lora` beside them."""
    specs = decoder.abstract_params(cfg)
    missing = tuple(
        ".lora[" in jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(specs)
    )
    adapters, others = split(specs, missing)
    make = jax.jit(
        partial(params.initialise, adapters), out_shardings=sharding.tree_shardings(adapters, mesh)
    )
    given = iter(jax.tree.leaves(weights))
    return join(make(key), jax.tree.map(lambda _: next(given), others))


def with_adapters(
    params: decoder.Params, model: ModelConfig, lora: LoraConfig, key: jax.Array, mesh: Mesh
) -> tuple[decoder.Params, ModelConfig]:
    """The policy with fresh adapters where `lora` asks for them; its own go on being trained."""
    if model.lora.rank and lora.rank and model.lora != lora:
        raise UserError(
            f"trainer.lora={lora} differs from the adapters that the policy has: {model.lora}. Leave "
            "trainer.lora out to go on with those, or merge them first: selfevolve convert."
        )
    if model.lora.rank or not lora.rank:
        return params, model
    model = replace(model, lora=lora)
    return add_adapters(params, model, key, mesh), model


def init_state(
    weights: decoder.Params,
    cfg: ModelConfig,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    trainable: Mask = None,
    teacher: bool = False,
) -> TrainState:
    """Step 0 from given parameters, which are copied, as updates donate their buffers. A teacher
    begins as the policy."""
    abstract = abstract_state(cfg, tx, mesh, trainable, teacher)

    def start(weights):
        mine = split(weights, trainable)[0]
        average = jax.tree.map(lambda x: jnp.array(x, jnp.float32), mine) if teacher else None
        copy = jax.tree.map(jnp.copy, weights)
        return TrainState(jnp.zeros((), jnp.int32), copy, tx.init(mine), average)

    return jax.jit(start, out_shardings=shardings_of(abstract))(weights)
