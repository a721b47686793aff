"""SRT: a policy trains on its own majority vote, beside arms that tell what the vote was worth.

For each arm, the loop of `trainer.train`: sample G answers to every prompt, let them vote, reward
agreement with the winner, take a policy-gradient step. The arms (`arms.ARMS`) are those of one
`experiment`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from etils import epath
from jax.sharding import Mesh

from selfevolve_jax import checkpoint, experiment, made_base, starting_point
from selfevolve_jax.errors import UserError
from selfevolve_jax.labels import Label, label_rows, read_labels, top_fraction, with_labels
from selfevolve_jax.srt.arms import ARMS
from selfevolve_jax.srt.base import get_base
from selfevolve_jax.srt.recipe import BaseConfig, SRTRecipe
from selfevolve_jax.srt.test_time import at_test_time
from selfevolve_jax.tasks import arithmetic, dataset, gym, sums
from selfevolve_jax.tasks.base import Row, Task

MAY_CHANGE = experiment.MAY_CHANGE


def run(
    recipe: SRTRecipe,
    folder: epath.PathLike,
    *,
    resume: bool = False,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> dict:
    """Trains every arm of the recipe; returns the summary that it also writes and prints."""
    plans = {
        arm: experiment.Plan(ARMS[arm].judge, ARMS[arm].change(recipe.trainer))
        for arm in recipe.arms
    }

    def loaded(mesh: Mesh, say: Callable[[str], None]) -> tuple[Task, checkpoint.Policy]:
        task, policy = load(recipe, mesh, say=say)
        return at_test_time(task) if recipe.test_time else task, policy

    rows = partial(_rows, recipe)
    return experiment.run(recipe, folder, plans, loaded, rows, resume=resume, tracker=tracker)


def _rows(
    recipe: SRTRecipe, task: Task, policy: checkpoint.Policy, mesh: Mesh, folder: epath.Path
) -> Callable[[str], Sequence[Row]]:
    wanted = any(ARMS[arm].labels for arm in recipe.arms)
    labels = _labels(recipe, task, policy, mesh, folder) if wanted else {}
    return lambda arm: _train_rows(recipe, arm, task.train, labels)


def _labels(
    recipe: SRTRecipe, task: Task, policy: checkpoint.Policy, mesh: Mesh, folder: epath.Path
) -> dict[int, Label]:
    """What the policy answers before training: read from where the recipe says, or made now, once for
    all arms and seeds of resumption, in RUN/labels."""
    if recipe.labels.path is not None:
        return read_labels(recipe.labels.path)
    return label_rows(
        policy.params,
        policy.model,
        task,
        task.train,
        folder / "labels",
        samples=recipe.labels.samples,
        seed=recipe.seed,
        mesh=mesh,
        rollout=recipe.trainer.rollout,
        sampling=recipe.trainer.sampling,
        max_new_tokens=recipe.trainer.max_new_tokens,
    )


def _train_rows(
    recipe: SRTRecipe, arm: str, rows: Sequence[Row], labels: dict[int, Label]
) -> Sequence[Row]:
    use = ARMS[arm].labels
    if use is None:
        return rows
    if use == "pseudo_labels":
        return with_labels(rows, labels)
    return top_fraction(rows, labels, use, recipe.labels.fraction)


def load(
    recipe: SRTRecipe, mesh: Mesh, say: Callable[[str], None]
) -> tuple[Task, checkpoint.Policy]:
    """The task and the policy to start from. For tasks of text, the policy's own tokenizer reads it."""
    if isinstance(recipe.policy, BaseConfig):
        assert isinstance(recipe.task, arithmetic.ArithmeticConfig)  # the recipe checks it
        task = arithmetic.load_task(recipe.task, recipe.seed)
        made_base.check_vocabulary(recipe.policy.model, task)
        return task, get_base(recipe.policy, task, recipe.task.width, recipe.seed, mesh, say)
    policy = starting_point.load_policy(recipe.policy, mesh)
    return load_task(recipe.task, policy, recipe.seed), policy


def load_task(
    config: arithmetic.ArithmeticConfig | dataset.DataConfig | gym.GymConfig | sums.SumsConfig,
    policy: checkpoint.Policy,
    seed: int,
) -> Task:
    """Any of the kinds of task, by the type of its config, for a policy that will read it."""
    if isinstance(config, arithmetic.ArithmeticConfig):
        task = arithmetic.load_task(config, seed)
        if policy.tokenizer.get_vocab() != task.tokenizer.get_vocab():
            raise UserError(
                "the arithmetic task has a tokenizer of its own, and the policy was trained with "
                "another. Use a policy trained on this task, or a task of text."
            )
        return task
    # A policy that sees keeps its image settings, also where the task shows it nothing.
    if isinstance(config, gym.GymConfig):
        task = gym.load_task(config, policy.tokenizer, seed, policy.stop_tokens)
        return replace(task, images=policy.images)
    if isinstance(config, sums.SumsConfig):
        task = sums.load_task(config, policy.tokenizer, seed, policy.stop_tokens)
        return replace(task, images=policy.images)
    return dataset.load_task(
        config,
        policy.tokenizer,
        policy.stop_tokens,
        vision=policy.model.vision,
        images=policy.images,
    )
