"""What training changes: parameters, optimiser state and the step, as one pytree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from models import decoder, params
from models.config import ModelConfig
from selfevolve_jax import sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    step: Any  # int32 scalar: batches of samples trained on so far
    params: Any  # decoder.Params; optax's types know mappings only
    opt_state: Any


def abstract_state(cfg: ModelConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with shardings: what a checkpoint is restored into.

    Optimiser moments are sharded as the parameters they belong to."""
    specs = decoder.abstract_params(cfg)
    shapes = params.shapes(specs)
    shardings = sharding.tree_shardings(specs, mesh)
    everywhere = sharding.replicated(mesh)

    def placed(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    opt_state = optax.tree.map_params(
        tx,
        placed,
        jax.eval_shape(tx.init, shapes),
        shardings,
        transform_non_params=lambda leaf: placed(leaf, everywhere),
    )
    return TrainState(
        step=placed(jax.ShapeDtypeStruct((), jnp.int32), everywhere),
        params=jax.tree.map(placed, shapes, shardings),
        opt_state=opt_state,
    )


def shardings_of(abstract: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_params(cfg: ModelConfig, key: jax.Array, mesh: Mesh) -> decoder.Params:
    """Fresh parameters, made on the devices that will hold them."""
    specs = decoder.abstract_params(cfg)
    make = jax.jit(
        partial(params.initialise, specs), out_shardings=sharding.tree_shardings(specs, mesh)
    )
    return make(key)


def init_state(
    weights: decoder.Params, cfg: ModelConfig, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Step 0 from given parameters, which are copied, as updates donate their buffers."""
    abstract = abstract_state(cfg, tx, mesh)

    def start(weights):
        return TrainState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, weights), tx.init(weights)
        )

    return jax.jit(start, out_shardings=shardings_of(abstract))(weights)
