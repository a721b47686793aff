"""The tasks with pictures that a base can be made for on the spot. Their modules have the same names:
load_task, tokenizer, prompt_tokens, noisy_examples, longest_example, LONGEST_RESPONSE, DIRECT,
IN_CONTEXT."""

from __future__ import annotations

from typing import Any

from selfevolve_jax.tasks import easy_vqa, pictures
from selfevolve_jax.tasks.easy_vqa import EasyVQAConfig
from selfevolve_jax.tasks.pictures import PicturesConfig

Drawn = PicturesConfig | EasyVQAConfig


def module(config: Drawn) -> Any:
    """The task's module."""
    return easy_vqa if isinstance(config, EasyVQAConfig) else pictures
