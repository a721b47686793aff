"""Levels that are climbed: the policy that trained on one level labels the next, harder one.

SRT's protocol on Reasoning Gym (arXiv 2505.21444; self-rewarding-llm-training.github.io): reinforcement
learning with ground truth on the previous level of difficulty, so that the policy knows the task and
its format, then majority votes alone on the harder level. Here the climb goes on: every further level
starts from the policy that the last one gave. The control climbs the same levels from the same warm
start on rewards drawn by lot; what it gains, SRT has not earned.

    RUN/arms/warm-start        ground truth on level 1, where the recipe asks for it
    RUN/arms/srt-level2 …      one run directory a stage; random-level2 … for the control

Every policy of the climb is scored on every level's held-out problems, so that the table shows what
carries over upwards and what is forgotten below.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import checkpoint, evaluate, hosts, made_base, run_dir, sharding, trainer
from selfevolve_jax.errors import UserError
from selfevolve_jax.experiment import say
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.report.html import write_report
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.srt import run as srt
from selfevolve_jax.srt.base import get_base
from selfevolve_jax.srt.recipe import BaseConfig, CheckpointConfig, SRTRecipe
from selfevolve_jax.starting_point import check_rollout, read_model
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.base import Task
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.gym import GymConfig
from selfevolve_jax.trainer import TrainerConfig

WARM_START = "warm-start"
CHAINS = {"srt": "majority", "random": "random"}  # chain -> judge
# What --resume may change: the control can be added to a climb that is done.
MAY_CHANGE = (srt.MAY_CHANGE - {"arms"}) | {"control"}
_SCORES = 5  # purpose of random keys, beside the trainer's own


@dataclass(frozen=True)
class LevelsRecipe:
    """A climb. levels: easiest first. The first is the one the policy is warm on: it trains there on
    ground truth for `warm_start_steps`, which is 0 where the base knows that level already. SRT trains
    on each of the others in turn, by `trainer`. control: climb once more on random rewards.
    """

    levels: tuple[ArithmeticConfig | GymConfig | DataConfig, ...]
    policy: BaseConfig | CheckpointConfig = field(default_factory=BaseConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    warm_start_steps: int = 0
    mesh: MeshConfig = field(default_factory=MeshConfig)
    seed: int = 0
    control: bool = True

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise UserError(
                f"levels has {len(self.levels)} entry: give the warm level and at least one to climb."
            )
        if self.warm_start_steps < 0:
            raise UserError(f"warm_start_steps={self.warm_start_steps} must be 0 (none) or more.")
        chains = [level for level in self.levels if isinstance(level, ArithmeticConfig)]
        if chains and len(chains) < len(self.levels):
            raise UserError(
                "levels mix the arithmetic task with tasks of text, and one policy cannot read both: "
                f"{', '.join(map(describe, self.levels))}. Use levels of one kind."
            )
        if len({level.width for level in chains}) > 1:
            longest = max(max(level.numbers) for level in chains)
            raise UserError(
                f"levels have the widths {', '.join(str(level.width) for level in chains)}: what is "
                "learnt on one would not be laid out as on the next. Give all the same, "
                f"{longest} or more (or 0, no padding)."
            )
        for number, level in enumerate(self.levels, 1):
            with _named(number, level):  # what one recipe checks holds level by level
                SRTRecipe(task=level, policy=self.policy, trainer=self.trainer, seed=self.seed)


def describe(level: ArithmeticConfig | GymConfig | DataConfig) -> str:
    """What a table calls a level."""
    if isinstance(level, ArithmeticConfig):
        return f"chains of {', '.join(map(str, level.numbers))}"
    if isinstance(level, GymConfig):
        return " ".join([level.name, *(f"{k}={v}" for k, v in level.options.items())])
    return " ".join(filter(None, (level.path, level.subset, level.split)))


def run_levels(
    recipe: LevelsRecipe,
    folder: epath.PathLike,
    *,
    resume: bool = False,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> dict[str, Any]:
    """Climbs; returns the summary that it also writes, stage by stage, and prints.

    summary: {"arms": as `run_dir.write_summary`, one entry a stage; "levels": {"level1": what it is};
    "matrix": {policy: {"level1": {"mean", "majority", "greedy"}}}, the policies being base,
    warm-start and the stages, a level without gold answers being empty; "seconds"}.

    A stage of a killed run goes on from its newest checkpoint; finished ones, and scores already in
    summary.json, are not made again. Raises what `trainer.train` raises, and UserError where the warm
    start lacks gold answers.
    """
    began, main = time.monotonic(), jax.process_index() == 0
    mesh, rollout_mesh = sharding.make_meshes(recipe.mesh)
    trainer.check_batch(recipe.trainer, mesh)  # before any folder is made or weight loaded
    if rollout_mesh is not None:
        check_rollout(read_model(recipe.policy), rollout_mesh)
    config = run_dir.jsonable(recipe)
    folder = run_dir.absolute(folder)

    def look() -> dict[str, Any]:
        run_dir.check(folder, config, resume, MAY_CHANGE)
        return run_dir.summary_so_far(folder)

    summary = {"arms": {}, "levels": {}, "matrix": {}, "seconds": 0.0} | hosts.first(
        "look at the run directory", look
    )
    summary["levels"] = {level_name(n): describe(c) for n, c in enumerate(recipe.levels, 1)}
    spent = summary["seconds"]
    tasks, policy = load_levels(recipe, mesh, say=say if main else lambda text: None)
    hosts.first(
        "make the run directory",
        lambda: str(run_dir.create(folder, config, resume, MAY_CHANGE)),
    )
    run_dir.check_shared(folder)
    if main:
        for name, task in zip(summary["levels"], tasks, strict=True):
            say(
                f"{name}, {summary['levels'][name]}: {len(task.train)} problems to train on, "
                f"{len(task.held_out)} held out"
            )

    def scored(name: str, params: decoder.Params, model: ModelConfig) -> None:
        if name not in summary["matrix"]:
            stage = len(summary["matrix"])  # the stages come in one order, killed or not
            summary["matrix"][name] = _score(recipe, tasks, params, model, mesh, stage)
        summary["seconds"] = spent + time.monotonic() - began
        if main:
            run_dir.write_summary(folder, summary)

    def train(
        name: str, judge: str, level: int, config_of: TrainerConfig, params: decoder.Params, model
    ) -> tuple[decoder.Params, ModelConfig]:
        """One stage; the policy that it ends with, scored."""
        stage_dir = folder / "arms" / name

        def create() -> None:
            again = (stage_dir / run_dir.CONFIG).exists()
            run_dir.create(stage_dir, {**config, "arm": name}, again, MAY_CHANGE)

        hosts.first("make the stage's directory", create)
        result = trainer.train(
            params,
            model,
            tasks[level - 1],
            judge,
            config_of,
            seed=stage_seed(recipe.seed, level),
            mesh=mesh,
            folder=stage_dir,
            title=name,
            tracker=tracker,
            rollout_mesh=rollout_mesh,
        )
        summary["arms"][name] = {
            "before": result.before,
            "after": result.after,
            "best": result.best,
            **({"ended": result.ended} if result.ended else {}),
        }
        if recipe.trainer.lora.rank and not model.lora.rank:
            model = replace(model, lora=recipe.trainer.lora)  # the next stage goes on with these
        scored(name, result.params, model)
        return result.params, model

    start = policy.params, policy.model
    scored("base", *start)
    if recipe.warm_start_steps:
        steps = replace(recipe.trainer, steps=recipe.warm_start_steps)
        start = train(WARM_START, "ground_truth", 1, steps, *start)
    for chain in chains(recipe):
        reached = start
        for level in range(2, len(tasks) + 1):
            name = f"{chain}-{level_name(level)}"
            reached = train(name, CHAINS[chain], level, recipe.trainer, *reached)
    if main:
        report = write_report([folder], folder / run_dir.REPORT)
        say(table(summary))
        say(f"{summary['seconds']:.0f} s. Report: {report}")
        say(climb(recipe, summary))
    return summary


def load_levels(recipe: LevelsRecipe, mesh: Mesh, say) -> tuple[list[Task], checkpoint.Policy]:
    """A task for each level, and the policy to start from. What any level holds out, no level trains
    on, nor does a base that is made here. UserError where that leaves a level nothing, or where the
    warm start's problems lack gold answers."""
    numbered = enumerate(recipe.levels, 1)
    tasks: list[Task] = []
    if isinstance(recipe.policy, BaseConfig):
        for number, level in numbered:
            assert isinstance(level, ArithmeticConfig)  # the recipe checks it
            with _named(number, level):
                tasks.append(arithmetic.load_task(level, recipe.seed))
        made_base.check_vocabulary(recipe.policy.model, tasks[0])
        avoided = replace(tasks[0], held_out=[row for task in tasks for row in task.held_out])
        width = max(c.width for c in recipe.levels if isinstance(c, ArithmeticConfig))  # of all
        policy = get_base(recipe.policy, avoided, width, recipe.seed, mesh, say)
    else:
        _, first = next(numbered)
        task, policy = srt.load(
            SRTRecipe(task=first, policy=recipe.policy, trainer=recipe.trainer, seed=recipe.seed),
            mesh,
            say,
        )
        tasks.append(task)
        for number, level in numbered:
            with _named(number, level):
                tasks.append(srt.load_task(level, policy, recipe.seed))
    tasks = without_held_out(tasks)
    if recipe.warm_start_steps and not all(row.gold for row in tasks[0].train):
        raise UserError(
            f"warm_start_steps={recipe.warm_start_steps} needs gold answers on level 1 "
            f"({describe(recipe.levels[0])}). Give it an answer column, or set 0."
        )
    return tasks, policy


def without_held_out(tasks: Sequence[Task]) -> list[Task]:
    """The tasks without the training rows that any of them holds out; counted under
    "held_out_by_a_level". UserError where nothing is left to train on."""
    asked = {(row.prompt, row.images) for task in tasks for row in task.held_out}
    kept = []
    for number, task in enumerate(tasks, 1):
        train = [row for row in task.train if (row.prompt, row.images) not in asked]
        if not train:
            raise UserError(
                f"level {number} ({task.name}): every training problem is held out by some level. "
                "Use levels whose problems differ."
            )
        counts = {**task.counts, "held_out_by_a_level": len(task.train) - len(train)}
        kept.append(replace(task, train=train, counts=counts))
    return kept


@contextlib.contextmanager
def _named(number: int, level: ArithmeticConfig | GymConfig | DataConfig) -> Iterator[None]:
    """Puts the level before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"level {number} ({describe(level)}): {error}") from error


def level_name(number: int) -> str:
    return f"level{number}"


def chains(recipe: LevelsRecipe) -> tuple[str, ...]:
    """The keys of CHAINS that climb."""
    return tuple(CHAINS) if recipe.control else ("srt",)


def stage_seed(seed: int, level: int) -> int:
    """The seed of a level's training: another for each, so that no key is used twice; the same for
    the control, which so sees the same problems in the same order."""
    return int(np.random.SeedSequence([seed, level]).generate_state(1)[0] >> 1)


def _score(
    recipe: LevelsRecipe,
    tasks: Sequence[Task],
    params: decoder.Params,
    model: ModelConfig,
    mesh: Mesh,
    stage: int,
) -> dict[str, dict[str, float]]:
    """Held-out figures of one policy on every level; {} for a level without gold answers."""
    found = {}
    config = recipe.trainer
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), _SCORES), stage)
    for number, task in enumerate(tasks, 1):
        found[level_name(number)] = {}
        if not task.held_out or not all(row.gold for row in task.held_out):
            continue
        with Equivalence(task.answer.equivalence) as equivalence:
            found[level_name(number)] = evaluate.score(
                params,
                model,
                task,
                task.held_out,
                equivalence,
                k=config.eval_samples,
                key=jax.random.fold_in(key, number),
                sampling=config.sampling,
                max_new_tokens=config.max_new_tokens,
                mesh=mesh,
                rollout=config.rollout,
            ).metrics()
    return found


def table(summary: dict[str, Any]) -> str:
    """Policies down, levels across: greedy / mean of single samples, on the held-out problems."""
    levels = summary["levels"]
    lines = [f"{name}: {what}" for name, what in levels.items()]
    lines.append(f"{'greedy / mean':<18}" + "".join(f"{name:>15}" for name in levels))
    for policy, scores in summary["matrix"].items():
        cells = [
            f"{scores[n]['greedy']:.3f} / {scores[n]['mean']:.3f}" if scores.get(n) else "no gold"
            for n in levels
        ]
        lines.append(f"{policy:<18}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def climb(recipe: LevelsRecipe, summary: dict[str, Any]) -> str:
    """A line a chain: greedy accuracy on each level that it climbed, from the policy it started with
    to the one it ended with."""
    matrix = summary["matrix"]
    start = WARM_START if recipe.warm_start_steps else "base"
    climbed = [level_name(n) for n in range(2, len(recipe.levels) + 1)]
    lines = [f"the climb, greedy, from {start} to the last level's policy:"]
    for chain in chains(recipe):
        before, after = matrix[start], matrix[f"{chain}-{climbed[-1]}"]
        cells = [
            f"{n} {before[n]['greedy']:.3f} → {after[n]['greedy']:.3f}"
            if before[n] and after[n]
            else f"{n} no gold"
            for n in climbed
        ]
        lines.append(f"{chain:<8}" + ", ".join(cells))
    return "\n".join(lines)
