"""The quickstart's base policy: noisy chains of the arithmetic task, learnt once (`made_base`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jax.sharding import Mesh

from selfevolve_jax import checkpoint, made_base, sft
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.srt.recipe import BaseConfig
from selfevolve_jax.tasks.arithmetic import noisy_examples
from selfevolve_jax.tasks.base import Task

_SOURCES = (*made_base.SOURCES, "tasks/arithmetic.py", "srt/base.py")


def content_hash(config: BaseConfig, task: Task, width: int, seed: int) -> str:
    """Names a base by everything that decides its weights, the held-out prompts it must not see among
    it."""
    told = {
        "config": dataclasses.asdict(config),
        "width": width,
        "seed": seed,
        "held_out": sorted(row.prompt for row in task.held_out),
    }
    return made_base.content_hash(told, _SOURCES)


def get_base(
    config: BaseConfig, task: Task, width: int, seed: int, mesh: Mesh, say: Callable[[str], None]
) -> checkpoint.Policy:
    """The base policy, from the cache or made now (and then cached, whole or not at all). width: as
    in the ArithmeticConfig of `task`."""
    return made_base.get(
        content_hash(config, task, width, seed),
        config.model,
        config.optimizer,
        config.steps,
        partial(_batches, config, task, width, seed),
        task,
        seed,
        mesh,
        say,
        f"{config.steps} steps of {config.batch} noisy chains",
    )


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
        rows = [(p, [((), r)]) for p, r in zip(prompts, responses, strict=True)]
        yield sft.supervised_batch(rows, length)
