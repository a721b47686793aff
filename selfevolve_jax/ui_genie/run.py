"""UI-Genie: a GUI agent and its reward model raise each other, round by round (arXiv 2505.21496), in a
real browser, beside arms that tell what the reward model was worth.

    RUN/config.json, summary.json, report.html
    RUN/screenshots           every picture once, for all that names it
    RUN/demonstrations        what both models begin from, and of the held-out seeds
    RUN/hold_out              what every reward model is tested on
    RUN/round-0               the first agent and reward model, shared by the arms
    RUN/arms/ARM/round-K      `rounds`
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
from etils import epath

from selfevolve_jax import checkpoint, run_dir, sharding, starting_point
from selfevolve_jax.errors import UserError
from selfevolve_jax.experiment import say
from selfevolve_jax.report import gui_run
from selfevolve_jax.ui_genie import (
    demos,
    evaluation,
    instructions,
    reward_metrics,
    rounds,
    tiny,
    trajectory,
)
from selfevolve_jax.ui_genie.miniwob import miniwob_fleet
from selfevolve_jax.ui_genie.recipe import UIGenieRecipe, page_seeds
from selfevolve_jax.ui_genie.remembered import Remembered
from selfevolve_jax.ui_genie.reward_data import Judged
from selfevolve_jax.ui_genie.reward_model import with_reward_tokens
from selfevolve_jax.ui_genie.rounds import Models, Setting
from selfevolve_jax.ui_genie.tiny import BaseConfig
from selfevolve_jax.ui_genie.training import check_batch
from selfevolve_jax.ui_genie.trajectory import Trajectory

# What --resume may change: neither alters what the run has done so far.
MAY_CHANGE = frozenset(
    (
        *("arms", "rounds", "screens", "rollout"),
        *(f"instructions.endpoint.{where}" for where in ("base_url", "key_env", "timeout_s")),
        *(f"instructions.endpoint.{how}" for how in ("attempts", "backoff_s")),
    )
)


def run(
    recipe: UIGenieRecipe,
    folder: epath.PathLike,
    *,
    resume: bool = False,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> dict[str, Any]:
    """Runs every arm of the recipe; returns the summary that it also writes and prints."""
    if jax.process_count() > 1:
        raise UserError(
            "ui-genie drives browsers from one process, and this is one of "
            f"{jax.process_count()}. Fix: start it on one host, whose devices its mesh may use all."
        )
    if tracker is not None:
        raise UserError(
            f"--tracker {tracker}: ui-genie logs to its run directory alone. Leave it out."
        )
    began = time.monotonic()
    mesh = sharding.make_mesh(recipe.mesh)
    config = run_dir.jsonable(recipe)
    if recipe.instructions.by == "pages":
        del config["instructions"]  # so that a run from before they were there can go on
    folder = run_dir.absolute(folder)
    run_dir.check(folder, config, resume, MAY_CHANGE)
    check_batch("agent.", recipe.agent.batch, recipe.agent.accumulate, mesh)
    if recipe.instructions.by == "endpoint" and _has_to_ask(recipe, folder):
        instructions.check_endpoint(recipe.instructions.endpoint)
    with miniwob_fleet(recipe.screens.tabs, recipe.screens.browser) as fleet:
        run_dir.create(folder, config, resume, MAY_CHANGE)
        earlier = run_dir.summary_so_far(folder)
        spent = earlier.get("seconds", 0.0)
        setting = Setting(recipe, mesh, Remembered(fleet), folder, say)
        shown = demonstrations(setting)
        first, rows, held_out, before = _round_0(shown, setting)
        summary: dict[str, Any] = {"arms": {}, "seconds": spent}
        for arm in recipe.arms:
            history = [before, *_arm(arm, first, rows, shown, held_out, setting)]
            summary["arms"][arm] = {
                "before": _headline(history[0]),
                "after": _headline(history[-1]),
                "rounds": [_headline(each) for each in history],
            }
            summary["seconds"] = spent + time.monotonic() - began
            run_dir.write_summary(folder, summary)
        say(_counted(fleet.counts))
    page = gui_run.write_page(folder)
    say(headline(summary))
    say(f"{summary['seconds']:.0f} s. Report: {page}")
    return summary


def _has_to_ask(recipe: UIGenieRecipe, folder: epath.Path) -> bool:
    """Whether the endpoint's words are still missing in some round."""
    numbers = range(instructions.FIRST_ROUND, recipe.rounds + 1)
    places = (folder / "arms" / arm / f"round-{n}" for arm in recipe.arms for n in numbers)
    return not all((place / instructions.INSTRUCTIONS).exists() for place in places)


def demonstrations(setting: Setting, held_out: bool = False) -> list[Trajectory]:
    """The scripts' episodes that the page calls a success: on the seeds that the models begin from, of
    the demonstrated tasks, or on the held-out ones, of all."""
    recipe = setting.recipe
    place = setting.folder / "demonstrations" / ("held-out" if held_out else "train")
    if not (place / trajectory.TRAJECTORIES).exists():
        if held_out:
            tasks, seeds = recipe.tasks, page_seeds(1, recipe.seed, recipe.held_out)
        else:
            tasks, seeds = recipe.demonstrated, page_seeds(0, recipe.seed, recipe.demonstrations)
        starts = [(task, seed) for task in tasks for seed in seeds]
        found, shots = demos.play(starts, setting.fleet, recipe.screens.tabs)
        won = [one for one in found if one.success]
        if not won:
            raise UserError(
                f"no script of {len(starts)} succeeded; the pages are not what they were."
            )
        setting.say(f"demonstrations: {len(won)} of {len(starts)} scripts succeeded")
        trajectory.write(place, won, shots, setting.folder)
    return trajectory.read(place)


def _round_0(
    shown: Sequence[Trajectory], setting: Setting
) -> tuple[Models, list[Judged], list[Judged], dict[str, Any]]:
    """The first agent and reward model, the rows that it learnt from, the hold-out, and how both do on
    it."""
    recipe, place = setting.recipe, setting.folder / "round-0"
    agent = first_agent(shown, setting)
    untrained = Models(agent, with_reward_tokens(agent, recipe.seed))
    of_held_out = demonstrations(setting, held_out=True)
    held_out = evaluation.hold_out(untrained, of_held_out, setting, setting.folder / "hold_out")
    rows = rounds.kept_rows(None, shown, untrained, setting, recipe.seed * 1000, place)
    reward = rounds.learn_reward(
        untrained.reward, rows, setting, recipe.seed * 1000, place / "reward"
    )
    models = Models(agent, reward)
    figures = evaluation.evaluate(models, held_out, setting, place, True)
    setting.say(f"round 0: {_told(figures)}")
    return models, rows, held_out, figures


def first_agent(shown: Sequence[Trajectory], setting: Setting) -> checkpoint.Policy:
    recipe, mesh = setting.recipe, setting.mesh
    if not isinstance(recipe.policy, BaseConfig):
        return starting_point.load_policy(recipe.policy, mesh)
    return tiny.get_base(recipe.policy, shown, setting.screenshots, recipe.seed, mesh, setting.say)


def _arm(arm, first: Models, rows, shown, held_out, setting: Setting) -> list[dict[str, Any]]:
    """The figures of an arm's rounds."""
    models, state = first, rounds.Learnt((), (), rows)
    history = []
    for number in range(1, setting.recipe.rounds + 1):
        place = setting.folder / "arms" / arm / f"round-{number}"
        models, state = rounds.one_round(
            *(number, arm, models, first.agent, state, shown, setting, place)
        )
        figures = evaluation.evaluate(models, held_out, setting, place, arm != "no_reward")
        setting.say(f"{arm}, round {number}: {_told(figures)}")
        history.append(figures)
    return history


def _headline(figures: dict[str, Any]) -> dict[str, Any]:
    shown = {
        name: figures[name]
        for name in (
            "agent_success",
            "reward_model_f1",
            "reward_model_f1_step",
            "reward_model_f1_outcome",
        )
        if name in figures
    }
    if "reward_model" in figures:
        shown |= {f"reward_model_{n}": figures["reward_model"][n] for n in ("auc", "f1_of_yes")}
        if figures["reward_model_f1"] is None:
            shown["reward_model_empty"] = reward_metrics.empty(figures["reward_model"])
    return shown


def _told(figures: dict[str, Any]) -> str:
    names = {"agent_success": "agent success", "reward_model_f1": "reward-model F1"}
    told = [
        f"{name} {_figure(_headline(figures), key)}"
        for key, name in names.items()
        if key in figures
    ]
    # None of a round that an earlier version of this project tested.
    ends = ", ".join(f"{n} {how}" for how, n in figures.get("failures", {}).items())
    return ", ".join(told) + (f"; failures: {ends}" if ends else "")


def _figure(told: dict[str, Any], name: str) -> str:
    """A figure of `_headline`, or why there is none."""
    if name not in told:
        return "no model"
    value = told[name]
    return told.get("reward_model_empty", "none") if value is None else f"{value:.3f}"


def _counted(counts: dict[str, int]) -> str:
    return "screens: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))


def headline(summary: dict[str, Any]) -> str:
    """The figures that the terminal prints last, arm by arm."""
    lines = [f"{'on held-out seeds':<20}{'agent success':>17}{'reward-model F1':>17}"]
    for arm, figures in summary["arms"].items():
        before, after = figures["before"], figures["after"]
        cells = []
        for name in ("agent_success", "reward_model_f1"):
            first, last = _figure(before, name), _figure(after, name)
            # What is missing is so in every round: the hold-out is one, and so is an arm's kind.
            measured = before.get(name) is not None and after.get(name) is not None
            cells.append(f"{first} → {last}" if measured else last)
        lines.append(f"{arm:<20}" + "".join(f"{cell:>17}" for cell in cells))
    # The hold-out is one for all, and so is what can be had on it without looking.
    yes = [arm["before"].get("reward_model_f1_of_yes") for arm in summary["arms"].values()]
    if yes and yes[0] is not None:
        lines.append(f"{'always yes':<20}{'':>17}{yes[0]:>17.3f}")
    return "\n".join(lines)
