"""An experiment: arms beside each other that start from one policy and see the same problems in the
same order with the same random numbers. They differ in their judge, or in one thing more.

    RUN/config.json, summary.json, report.html
    RUN/arms/ARM                 a run directory and a policy folder each
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax
from etils import epath
from jax.sharding import Mesh

from selfevolve_jax import checkpoint, hosts, run_dir, sharding, trainer
from selfevolve_jax.report.html import write_report
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.starting_point import check_rollout, read_model
from selfevolve_jax.tasks.base import Row, Task
from selfevolve_jax.trainer_config import TrainerConfig

# What --resume may change: neither alters what the run has done so far.
MAY_CHANGE = frozenset(
    (
        "arms",
        "mesh",
        *(f"trainer.{name}" for name in ("eval_every", "save_every", "keep", "rollout")),
    )
)


class Recipe(Protocol):
    """What an experiment reads of a recipe, a frozen dataclass; the rest is its system's affair."""

    @property
    def trainer(self) -> TrainerConfig: ...
    @property
    def mesh(self) -> MeshConfig: ...
    @property
    def policy(self) -> Any: ...
    @property
    def arms(self) -> tuple[str, ...]: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Plan:
    """What one arm does: its judge, by its name in `judges.registry`, and its trainer's options."""

    judge: str
    trainer: TrainerConfig


Load = Callable[[Mesh, Callable[[str], None]], tuple[Task, checkpoint.Policy]]
# (task, policy, mesh, the run's folder) -> an arm's name -> the rows that it trains on
Rows = Callable[[Task, checkpoint.Policy, Mesh, epath.Path], Callable[[str], Sequence[Row]]]


def all_rows(
    task: Task, policy: checkpoint.Policy, mesh: Mesh, folder: epath.Path
) -> Callable[[str], Sequence[Row]]:
    """Every arm trains on the task's own rows."""
    return lambda arm: task.train


def run(
    recipe: Recipe,
    folder: epath.PathLike,
    plans: Mapping[str, Plan],
    load: Load,
    rows: Rows = all_rows,
    *,
    resume: bool = False,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> dict[str, Any]:
    """Trains every arm of the recipe; returns the summary that it also writes and prints.

    load(mesh, say): the task and the policy to start from. rows: called once, when the run's folder is
    there, so that what it makes may be kept in it.
    """
    began, main = time.monotonic(), jax.process_index() == 0
    mesh, rollout_mesh = sharding.make_meshes(recipe.mesh)
    for arm in recipe.arms:
        trainer.check_batch(plans[arm].trainer, mesh)  # before any folder is made or weight loaded
    if rollout_mesh is not None:
        check_rollout(read_model(recipe.policy), rollout_mesh)
    config = run_dir.jsonable(recipe)
    folder = run_dir.absolute(folder)
    hosts.first(
        "look at the run directory", lambda: run_dir.check(folder, config, resume, MAY_CHANGE)
    )
    task, policy = load(mesh, say if main else lambda text: None)

    def create() -> dict[str, Any]:
        run_dir.create(folder, config, resume, MAY_CHANGE)
        return {"arms": {}} | run_dir.summary_so_far(folder)

    earlier = hosts.first("make the run directory", create)
    run_dir.check_shared(folder)
    if main:
        dropped = ", ".join(f"{n} {reason}" for reason, n in task.counts.items() if n)
        say(
            f"{task.name}: {len(task.train)} problems to train on, {len(task.held_out)} held out"
            + (f"; left out: {dropped}" if dropped else "")
        )

    spent: float = earlier.get("seconds", 0.0)
    summary = {"arms": dict(earlier["arms"]), "seconds": spent}
    rows_of = rows(task, policy, mesh, folder)
    for arm in recipe.arms:
        plan, arm_dir = plans[arm], folder / "arms" / arm
        own = run_dir.jsonable(recipe) | run_dir.jsonable({"trainer": plan.trainer, "arms": (arm,)})

        def create_arm(arm_dir=arm_dir, own=own) -> None:
            run_dir.create(arm_dir, own, (arm_dir / run_dir.CONFIG).exists(), MAY_CHANGE)

        hosts.first("make the arm's directory", create_arm)
        result = trainer.train(
            policy.params,
            policy.model,
            replace(task, train=rows_of(arm)),
            plan.judge,
            plan.trainer,
            seed=recipe.seed,
            mesh=mesh,
            folder=arm_dir,
            title=arm,
            tracker=tracker,
            rollout_mesh=rollout_mesh,
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
        say(headline(summary))
        say(f"{summary['seconds']:.0f} s. Report: {report}")
    return summary


def headline(summary: dict[str, Any]) -> str:
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


def say(text: str) -> None:
    print(text, flush=True)
