"""SRT: a policy trains on its own majority vote, beside arms that tell what the vote was worth.

For each arm, the loop of `trainer.train`: sample G answers to every prompt, let them vote, reward
agreement with the winner, take a policy-gradient step. The arms share the base policy, the prompts,
their order and the random numbers; they differ in their judge, or in one cure (`arms.ARMS`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
from etils import epath

from selfevolve_jax import checkpoint, run_dir, sharding, trainer
from selfevolve_jax.errors import UserError
from selfevolve_jax.labels import Label, label_rows, read_labels, top_fraction, with_labels
from selfevolve_jax.pretrained import source
from selfevolve_jax.report.html import write_report
from selfevolve_jax.srt.arms import ARMS
from selfevolve_jax.srt.base import get_base
from selfevolve_jax.srt.recipe import BaseConfig, SRTRecipe
from selfevolve_jax.srt.test_time import at_test_time
from selfevolve_jax.tasks import arithmetic, dataset, gym, sums
from selfevolve_jax.tasks.base import Row, Task

# What --resume may change: neither alters what the run has done so far.
MAY_CHANGE = frozenset(
    ("arms", "trainer.eval_every", "trainer.save_every", "trainer.keep", "trainer.rollout")
)


def run(
    recipe: SRTRecipe,
    folder: epath.PathLike,
    *,
    resume: bool = False,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> dict:
    """Trains every arm of the recipe; returns the summary that it also writes and prints."""
    began, main = time.monotonic(), jax.process_index() == 0
    mesh = sharding.make_mesh(recipe.mesh)
    trainers = {arm: ARMS[arm].change(recipe.trainer) for arm in recipe.arms}
    for config in trainers.values():
        trainer.check_batch(config, mesh)  # before any folder is made or weight loaded
    config = run_dir.jsonable(recipe)
    folder = run_dir.absolute(folder)
    run_dir.check(folder, config, resume, MAY_CHANGE)
    task, policy = load(recipe, mesh, say=_say if main else lambda text: None)
    if recipe.test_time:
        task = at_test_time(task)
    if main:
        run_dir.create(folder, config, resume, MAY_CHANGE)
        dropped = ", ".join(f"{n} {reason}" for reason, n in task.counts.items() if n)
        _say(
            f"{task.name}: {len(task.train)} problems to train on, {len(task.held_out)} held out"
            + (f"; left out: {dropped}" if dropped else "")
        )

    there = (folder / run_dir.SUMMARY).exists()
    earlier: dict[str, Any] = run_dir.read_summary(folder) if there else {"arms": {}}
    spent: float = earlier.get("seconds", 0.0)
    summary = {"arms": dict(earlier["arms"]), "seconds": spent}
    labels = _labels(recipe, task, policy, mesh, folder) if _wants_labels(recipe) else {}
    for arm in recipe.arms:
        arm_dir = folder / "arms" / arm
        if main:
            again = (arm_dir / run_dir.CONFIG).exists()
            own = run_dir.jsonable(replace(recipe, trainer=trainers[arm], arms=(arm,)))
            run_dir.create(arm_dir, own, again, MAY_CHANGE)
        result = trainer.train(
            policy.params,
            policy.model,
            replace(task, train=_train_rows(recipe, arm, task.train, labels)),
            ARMS[arm].judge,
            trainers[arm],
            seed=recipe.seed,
            mesh=mesh,
            folder=arm_dir,
            title=arm,
            tracker=tracker,
        )
        summary["arms"][arm] = {
            "before": result.before,
            "after": result.after,
            "best": result.best,
            **({"ended": result.ended} if result.ended else {}),
        }
        summary["seconds"] = spent + time.monotonic() - began
        if main:  # after each arm: what has ended can be read while the next one runs
            run_dir.write_summary(folder, summary)
    if main:
        report = write_report([folder], folder / run_dir.REPORT)
        _say(headline(summary))
        _say(f"{summary['seconds']:.0f} s. Report: {report}")
    return summary


def _wants_labels(recipe: SRTRecipe) -> bool:
    return any(ARMS[arm].labels for arm in recipe.arms)


def _labels(
    recipe: SRTRecipe, task: Task, policy: checkpoint.Policy, mesh, folder: epath.Path
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


def load(recipe: SRTRecipe, mesh, say) -> tuple[Task, checkpoint.Policy]:
    """The task and the policy to start from. For tasks of text, the policy's own tokenizer reads it."""
    if isinstance(recipe.policy, BaseConfig):
        assert isinstance(recipe.task, arithmetic.ArithmeticConfig)  # the recipe checks it
        task = arithmetic.load_task(recipe.task, recipe.seed)
        size, known = recipe.policy.model.vocab_size, len(task.tokenizer)
        if size < known:
            raise UserError(
                f"policy.model.vocab_size={size} is less than the tokenizer's {known} tokens. Use "
                f"{known} or more."
            )
        return task, get_base(recipe.policy, task, recipe.task.width, recipe.seed, mesh, say)
    chosen = recipe.policy
    policy = source.load_policy(
        chosen.path, mesh, dtype=chosen.dtype, param_dtype=chosen.param_dtype
    )
    if chosen.remat:
        policy = replace(policy, model=replace(policy.model, remat=chosen.remat))
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


def headline(summary: dict) -> str:
    """The figures that the terminal prints last: before and after, arm by arm."""
    lines = [f"{'held-out accuracy':<20}{'mean':>17}{'majority':>17}{'greedy':>17}"]
    for arm, figures in summary["arms"].items():
        before, after = figures["before"], figures["after"]
        cells = [
            f"{before[m]:.3f} → {after[m]:.3f}" if m in before and m in after else "no gold"
            for m in ("mean", "majority", "greedy")
        ]
        lines.append(f"{arm:<20}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, flush=True)
