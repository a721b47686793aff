"""The quickstart's base policy: a tiny vision-language model that learnt noisy answers about drawings
once (`made_base`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from selfevolve_jax import checkpoint, made_base, sft
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.images import preprocess
from selfevolve_jax.mm_upt.drawn import Drawn, module
from selfevolve_jax.mm_upt.recipe import BaseConfig
from selfevolve_jax.tasks import easy_vqa, pictures
from selfevolve_jax.tasks.base import Task
from selfevolve_jax.tasks.easy_vqa import EasyVQAConfig

_SOURCES = (
    *made_base.SOURCES,
    *("grpo/batch.py", "images.py", "rollout/buckets.py"),
    *("tasks/drawings.py", "tasks/pictures.py", "tasks/easy_vqa.py", "mm_upt/base.py"),
)


def content_hash(config: BaseConfig, shown: Drawn, task: Task, seed: int) -> str:
    """Names a base by everything that decides its weights, the held-out pictures it must not see among
    it."""
    told = {
        "config": dataclasses.asdict(config),
        "shown": [type(shown).__name__, *getattr(shown, "kinds", ())],
        "seed": seed,
        "held_out": sorted(pictures.shown_by(task.held_out)),
    }
    packages = ("pillow", "easy-vqa") if isinstance(shown, EasyVQAConfig) else ("pillow",)
    return made_base.content_hash(told, _SOURCES, packages)


def get_base(
    config: BaseConfig,
    shown: Drawn,
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
        f"{config.steps} steps of noisy answers about {config.batch} of {config.drawings:,} pictures",
    )


def batches(config: BaseConfig, shown: Drawn, task: Task, seed: int) -> Iterator[Batch]:
    """`config.steps` batches, of pictures that the task does not hold out."""
    vision, images = config.model.vision, task.images
    assert vision is not None and images is not None
    rng = np.random.default_rng([seed, 3])
    made: Any = module(shown)
    if isinstance(shown, EasyVQAConfig):
        drawings = first = easy_vqa.warm_start(config.drawings)
    else:
        avoid = pictures.shown_by(task.held_out)
        drawings = pictures.new_drawings(rng, shown, config.drawings, config.hard, avoid)
        first = [drawing for drawing in drawings if drawing.kind == shown.kinds[0]]
    prompt = made.prompt_tokens("", task.tokenizer, vision, images)
    # Texts come again and again, and a tokenizer's call is slower than all else here.
    encode = cache(partial(task.tokenizer.encode, add_special_tokens=False))
    room = config.row_tokens - len(prompt)
    for step in range(config.steps):
        pool = first if step < config.first_kind else drawings
        erring = step >= config.clean * config.steps
        errors = (config.noise, config.glance, config.misread) if erring else (0.0, 0.0, 0.0)
        picked = [pool[i] for i in rng.integers(len(pool), size=config.batch)]
        rows = []
        for drawing in picked:
            examples = made.noisy_examples(rng, drawing, config.asking, *errors)
            pairs = ((encode(one.text), encode(one.response)) for one in examples)
            rows.append((prompt, sft.fitting(pairs, room)))
        seen = [[preprocess(drawing.image, images, vision)] for drawing in picked]
        yield sft.supervised_batch(rows, config.row_tokens, seen, vision)
