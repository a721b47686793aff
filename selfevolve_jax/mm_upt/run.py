"""MM-UPT: a vision-language model trains on its own majority vote, beside arms that tell what the vote
was worth ("Unsupervised Post-Training for Multi-Modal LLM Reasoning via GRPO", arXiv 2505.22453).

Picture and question in, G answers out, the most frequent one is the pseudo-label, agreeing with it
earns 1, a GRPO step follows: the loop of `trainer.train`. The arms (`arms.ARMS`) are those of one
`experiment`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
from etils import epath
from jax.sharding import Mesh

from selfevolve_jax import checkpoint, experiment, made_base, starting_point
from selfevolve_jax.errors import UserError
from selfevolve_jax.mm_upt.arms import ARMS, trainer_of
from selfevolve_jax.mm_upt.base import get_base
from selfevolve_jax.mm_upt.drawn import Drawn, module
from selfevolve_jax.mm_upt.questions import written
from selfevolve_jax.mm_upt.recipe import BaseConfig, MMUPTRecipe
from selfevolve_jax.tasks import dataset
from selfevolve_jax.tasks.base import Row, Task
from selfevolve_jax.tasks.dataset import DataConfig


def run(
    recipe: MMUPTRecipe,
    folder: epath.PathLike,
    *,
    resume: bool = False,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> dict[str, Any]:
    """Trains every arm of the recipe; returns the summary that it also writes and prints."""
    plans = {
        arm: experiment.Plan(ARMS[arm].judge, trainer_of(arm, recipe.trainer, recipe.filter_below))
        for arm in recipe.arms
    }

    def loaded(mesh: Mesh, say: Callable[[str], None]) -> tuple[Task, checkpoint.Policy]:
        return load(recipe, mesh, say)

    rows = partial(_rows, recipe)
    return experiment.run(recipe, folder, plans, loaded, rows, resume=resume, tracker=tracker)


def _rows(
    recipe: MMUPTRecipe, task: Task, policy: checkpoint.Policy, mesh: Mesh, folder: epath.Path
) -> Callable[[str], Sequence[Row]]:
    """Each arm's rows: the task's own, or what the base writes now, before any arm trains."""
    say = experiment.say if jax.process_index() == 0 else lambda text: None
    own: dict[str, Sequence[Row]] = {}
    for arm in recipe.arms:
        mode = ARMS[arm].questions
        if mode is not None:
            own[arm] = written(recipe, mode, task, policy, mesh, folder, say)
    return lambda arm: own.get(arm, task.train)


def load(
    recipe: MMUPTRecipe, mesh: Mesh, say: Callable[[str], None]
) -> tuple[Task, checkpoint.Policy]:
    """The task and the policy to start from."""
    if isinstance(recipe.policy, BaseConfig):
        model = recipe.policy.model
        assert not isinstance(recipe.task, DataConfig) and model.vision  # the recipe checks it
        task = module(recipe.task).load_task(recipe.task, recipe.seed, model.vision)
        made_base.check_vocabulary(model, task)
        return task, get_base(recipe.policy, recipe.task, task, recipe.seed, mesh, say)
    policy = starting_point.load_policy(recipe.policy, mesh)
    areas = {"min_pixels": recipe.min_pixels, "max_pixels": recipe.max_pixels}
    areas = {name: value for name, value in areas.items() if value is not None}
    if areas:
        if policy.images is None:
            raise UserError(
                f"{' and '.join(areas)}: the policy {recipe.policy.path} reads text only, and has no "
                "pictures to resize. Leave it out, or use a vision-language checkpoint."
            )
        policy = replace(policy, images=replace(policy.images, **areas))
    return load_task(recipe.task, policy, recipe.seed), policy


def load_task(config: Drawn | DataConfig, policy: checkpoint.Policy, seed: int) -> Task:
    """The task, for a policy that will look at it and read it."""
    vision, images = policy.model.vision, policy.images
    if isinstance(config, DataConfig):
        return dataset.load_task(
            config, policy.tokenizer, policy.stop_tokens, vision=vision, images=images
        )
    if vision is None or images is None:
        raise UserError(
            "this task needs a policy that sees, and this one reads text only. Use one trained on it, "
            "as `selfevolve mm-upt quickstart` makes one."
        )
    task = module(config).load_task(config, seed, vision, images)
    if policy.tokenizer.get_vocab() != task.tokenizer.get_vocab():
        raise UserError(
            f"the task {task.name} has a tokenizer of its own, and the policy was trained with "
            "another. Use a policy trained on this task, or a data set: --task.path."
        )
    return replace(task, images=images)
