"""The quickstart's base policy: a tiny vision-language model that learnt noisy answers about drawings
once (`made_base`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jax.sharding import Mesh

from selfevolve_jax import checkpoint, made_base, sft
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.images import preprocess
from selfevolve_jax.mm_upt.recipe import BaseConfig
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.base import Task
from selfevolve_jax.tasks.pictures import PicturesConfig

_SOURCES = (
    *made_base.SOURCES,
    *("grpo/batch.py", "images.py", "rollout/buckets.py"),
    *("tasks/drawings.py", "tasks/pictures.py", "mm_upt/base.py"),
)


def content_hash(config: BaseConfig, shown: PicturesConfig, task: Task, seed: int) -> str:
    """Names a base by everything that decides its weights, the held-out pictures it must not see among
    it."""
    told = {
        "config": dataclasses.asdict(config),
        "kinds": shown.kinds,
        "seed": seed,
        "held_out": sorted(pictures.shown_by(task.held_out)),
    }
    return made_base.content_hash(told, _SOURCES, ("pillow",))


def get_base(
    config: BaseConfig,
    shown: PicturesConfig,
    task: Task,
    seed: int,
    mesh: Mesh,
    say: Callable[[str], None],
) -> checkpoint.Policy:
    """The base policy, from the cache or made now (and then cached, whole or not at all). shown: what
    `task` was loaded from."""
    return made_base.get(
        content_hash(config, shown, task, seed),
        config.model,
        config.optimizer,
        config.steps,
        partial(batches, config, shown, task, seed),
        task,
        seed,
        mesh,
        say,
        f"{config.steps} steps of {config.batch} noisy answers about {config.drawings:,} drawings",
    )


def batches(config: BaseConfig, shown: PicturesConfig, task: Task, seed: int) -> Iterator[Batch]:
    """`config.steps` batches, of drawings that the task does not hold out."""
    vision, images = config.model.vision, task.images
    assert vision is not None and images is not None
    rng = np.random.default_rng([seed, 3])
    avoid = pictures.shown_by(task.held_out)
    drawings = pictures.new_drawings(rng, shown, config.drawings, config.hard, avoid)
    length = pictures.longest_example(config.asking > 0, vision)
    for _ in range(config.steps):
        examples = pictures.noisy_examples(rng, drawings, config.noise, config.batch, config.asking)
        pairs = [
            (
                pictures.prompt_tokens(example.text, task.tokenizer, vision, images),
                task.tokenizer.encode(example.response, add_special_tokens=False),
            )
            for example in examples
        ]
        seen = [[preprocess(example.drawing.image, images, vision)] for example in examples]
        yield sft.supervised_batch(pairs, length, seen, vision)
