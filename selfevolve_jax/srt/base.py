"""The quickstart's base policy: made once by supervised learning, then found by its content hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

import models
import selfevolve_jax
from models import decoder
from selfevolve_jax import checkpoint, sft, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.optimizer import decay_mask, make_optimizer
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.run_dir import disk_errors
from selfevolve_jax.srt.recipe import BaseConfig
from selfevolve_jax.state import init_params, init_state
from selfevolve_jax.tasks.arithmetic import noisy_examples
from selfevolve_jax.tasks.base import Task

# What a base is made by: a change in any of these makes another one.
_SOURCES = (
    *("sft.py", "optimizer.py", "state.py", "trainable.py", "grpo/logprobs.py", "grpo/update.py"),
    *("grpo/losses.py", "tasks/arithmetic.py", "tasks/base.py", "srt/base.py"),
)


def cache_folder() -> Path:
    """$SELFEVOLVE_CACHE, or selfevolve in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("SELFEVOLVE_CACHE") or os.path.join(home, "selfevolve"))


def content_hash(config: BaseConfig, task: Task, width: int, seed: int) -> str:
    """Names a base by everything that decides its weights: settings, seed, the held-out prompts it
    must not see, the code, and the versions of jax and its compiler."""
    digest = hashlib.sha256()
    told = {
        "config": dataclasses.asdict(config),
        "width": width,
        "seed": seed,
        "held_out": sorted(row.prompt for row in task.held_out),
        "versions": [metadata.version(p) for p in ("jax", "jaxlib", "optax", "numpy")],
    }
    digest.update(json.dumps(told, sort_keys=True).encode())
    ours, theirs = (Path(str(m.__file__)).parent for m in (selfevolve_jax, models))
    for file in [ours / name for name in _SOURCES] + sorted(theirs.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def get_base(
    config: BaseConfig, task: Task, width: int, seed: int, mesh: Mesh, say: Callable[[str], None]
) -> checkpoint.Policy:
    """The base policy, from the cache or made now (and then cached, whole or not at all). width: as
    in the ArithmeticConfig of `task`."""
    folder = cache_folder() / "bases" / content_hash(config, task, width, seed)
    if not folder.exists():
        say(
            f"base policy: supervised learning, {config.steps} steps of {config.batch} noisy chains"
        )
        _make(config, task, width, seed, mesh, folder, say)
    else:
        say(f"base policy: from the cache, {folder}")
    return checkpoint.load_policy(folder, mesh)


def _make(
    config: BaseConfig, task: Task, width: int, seed: int, mesh: Mesh, folder: Path, say
) -> None:
    try:
        with disk_errors(epath.Path(folder)):
            folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"the cache's folder {folder.parent} cannot be made: {error}. Set SELFEVOLVE_CACHE to a "
            "folder."
        ) from error
    tx = make_optimizer(
        config.optimizer, config.steps, decay_mask(decoder.abstract_params(config.model))
    )
    params = init_params(config.model, jax.random.fold_in(jax.random.key(seed), 0), mesh)
    state = init_state(params, config.model, tx, mesh)
    state, loss = sft.train(
        state,
        (sharding.put_batch(b, mesh) for b in _batches(config, task, width, seed)),
        config.model,
        tx,
        sharding.constrainer(mesh),
    )
    with disk_errors(epath.Path(folder)):
        partial = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
    try:
        checkpoint.save_policy_files(partial, config.model, task.tokenizer, task.stop_tokens)
        saved = checkpoint.open_checkpoints(Path(partial) / checkpoint.LATEST, 1)
        try:
            checkpoint.save_async(saved, state, 0, {"last_loss": loss})
        finally:
            checkpoint.close(saved)  # or it would go on writing into the folder that is removed
        try:
            os.rename(partial, folder)
        except OSError:  # another process was quicker, with the same weights
            if not folder.exists():
                raise
        say(f"base policy: done, last loss {loss:.3f} nats a token; kept in {folder}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _batches(config: BaseConfig, task: Task, width: int, seed: int) -> Iterator:
    rng = np.random.default_rng([seed, 3])
    avoid = {row.prompt for row in task.held_out}
    longest = max(config.numbers)
    length = bucket(2 * width + 2 * (longest - 1) if width else 3 * longest, 8)

    def encode(texts: list[str]) -> list[list[int]]:
        return task.tokenizer(texts, add_special_tokens=False)["input_ids"]

    for _ in range(config.steps):
        pairs = noisy_examples(rng, config.numbers, config.noise, config.batch, avoid, width)
        prompts, responses = (encode(list(side)) for side in zip(*pairs, strict=True))
        yield sft.supervised_batch(list(zip(prompts, responses, strict=True)), length)
