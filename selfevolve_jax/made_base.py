"""Base policies that are made on the spot by supervised learning, then found by their content hash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

import models
import selfevolve_jax
from models import decoder
from models.config import ModelConfig
from selfevolve_jax import checkpoint, hosts, run_dir, sft, sharding
from selfevolve_jax.cache import cache_folder
from selfevolve_jax.errors import UserError
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.run_dir import disk_errors
from selfevolve_jax.state import init_params, init_state
from selfevolve_jax.tasks.base import Task

# What any base is made by; a system adds its task and its own recipe. A change makes another base.
SOURCES = (
    *("sft.py", "optimizer.py", "state.py", "trainable.py", "grpo/logprobs.py", "grpo/update.py"),
    *("grpo/losses.py", "tasks/base.py", "made_base.py"),
)


def content_hash(told: dict[str, Any], sources: Sequence[str], packages: Sequence[str] = ()) -> str:
    """Names a base by everything that decides its weights: what is told (settings, seed, what it must
    not see; plain data), the code (`sources`, paths in selfevolve_jax, and all of models), and the
    versions of jax, its compiler and further `packages`."""
    digest = hashlib.sha256()
    versions = [metadata.version(p) for p in ("jax", "jaxlib", "optax", "numpy", *packages)]
    digest.update(json.dumps(told | {"versions": versions}, sort_keys=True).encode())
    ours, theirs = (Path(str(m.__file__)).parent for m in (selfevolve_jax, models))
    for file in [ours / name for name in sources] + sorted(theirs.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def check_vocabulary(model: ModelConfig, task: Task) -> None:
    """UserError for a model that is too small to hold the task's tokens."""
    size, known = model.vocab_size, len(task.tokenizer)
    if size < known:
        raise UserError(
            f"policy.model.vocab_size={size} is less than the tokenizer's {known} tokens. Use "
            f"{known} or more."
        )


def get(
    name: str,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    steps: int,
    batches: Callable[[], Iterable[Any]],
    task: Task,
    seed: int,
    mesh: Mesh,
    say: Callable[[str], None],
    learns: str,
    start: Callable[[decoder.Params], decoder.Params] = lambda params: params,
) -> checkpoint.Policy:
    """The base called `name`, its content hash, from the cache or made now (and then cached, whole or
    not at all). batches(): `steps` batches of `sft.supervised_batch`. learns: what it is made from, for
    the terminal. start: what becomes of the random weights before the first step."""
    sharding.check_attention(model.attention, mesh)
    folder = Path(hosts.first("find the cache", lambda: str(cache_folder()))) / "bases" / name
    if not hosts.first("look for the base", folder.exists):
        say(f"base policy: supervised learning, {learns}")
        make(folder, model, optimizer, steps, batches, task, seed, mesh, say, start)
    else:
        say(f"base policy: from the cache, {folder}")
    run_dir.check_shared(folder, "cache of base policies (SELFEVOLVE_CACHE)")
    policy = checkpoint.load_policy(folder, mesh)
    return replace(policy, model=replace(policy.model, attention=model.attention))


def make(
    folder: Path,
    model: ModelConfig,
    optimizer: OptimizerConfig,
    steps: int,
    batches: Callable[[], Iterable[Any]],
    task: Task,
    seed: int,
    mesh: Mesh,
    say: Callable[[str], None],
    start: Callable[[decoder.Params], decoder.Params],
) -> None:
    """Trains, and writes the policy folder whole or not at all."""

    def prepare() -> None:
        try:
            with disk_errors(epath.Path(folder)):
                folder.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(
                f"the cache's folder {folder.parent} cannot be made: {error}. Set SELFEVOLVE_CACHE to "
                "a folder."
            ) from error

    def begin() -> str:
        with disk_errors(epath.Path(folder)):
            return tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)

    def end() -> None:
        checkpoint.save_policy_files(partial, model, task.tokenizer, task.stop_tokens, task.images)
        try:
            os.rename(partial, folder)
        except OSError:  # another run was quicker, with the same weights
            if not folder.exists():
                raise

    hosts.first("prepare the cache", prepare)
    tx = make_optimizer(optimizer, steps, decay_mask(decoder.abstract_params(model)))
    params = start(init_params(model, jax.random.fold_in(jax.random.key(seed), 0), mesh))
    state, loss = sft.train(
        init_state(params, model, tx, mesh),
        (sharding.put_batch(batch, mesh) for batch in batches()),
        model,
        tx,
        sharding.constrainer(mesh),
    )
    partial = hosts.first("begin the base", begin)
    try:
        run_dir.check_shared(partial, "cache of base policies (SELFEVOLVE_CACHE)")
        saved = checkpoint.open_checkpoints(Path(partial) / checkpoint.LATEST, 1)
        try:
            checkpoint.save_async(saved, state, 0, {"last_loss": loss})
        finally:
            checkpoint.close(saved)  # or it would go on writing into the folder that is removed
        hosts.first("keep the base", end)
        say(f"base policy: done, last loss {loss:.3f} nats a token; kept in {folder}")
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)
