"""What both models of a round are tested on: held-out seeds, judged by the environment itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.ui_genie import reward_data, reward_metrics, reward_rows
from selfevolve_jax.ui_genie.environment import State
from selfevolve_jax.ui_genie.recipe import UIGenieRecipe, page_seeds
from selfevolve_jax.ui_genie.reward_data import Judged
from selfevolve_jax.ui_genie.rounds import (
    Models,
    Setting,
    episodes,
    named_rows,
    proposals,
    scorer,
)
from selfevolve_jax.ui_genie.trajectory import Trajectory

EVALUATION = "evaluation.json"
_SAMPLES = 3  # episodes of each held-out start that the reward model is tested on


def hold_out(
    models: Models, demonstrations: Sequence[Trajectory], setting: Setting, folder: epath.Path
) -> list[Judged]:
    """What every reward model of the run is tested on, made once with the first agent on held-out
    seeds: the ends of its episodes, by the environment's verdict, and its own actions in the states of
    demonstrations of those seeds, by rule."""
    path = folder / "rows.jsonl"
    if not path.exists():
        recipe = setting.recipe
        config = replace(recipe.exploration, mode="sample", candidates=_SAMPLES)
        starts = held_out_starts(recipe)
        found = episodes("held-out", starts, models, setting, config, recipe.seed, folder, False)
        rows = reward_data.outcome_rows(found, "environment")
        steps, _ = reward_data.rule_verified(
            demonstrations, "environment", proposals(models.agent, setting, recipe.seed + 1)
        )
        rows += [row for row in steps if row.level == "step"]
        reward_rows.write(path, named_rows(rows, setting))
    return reward_rows.read(path)


def held_out_starts(recipe: UIGenieRecipe) -> list[State]:
    seeds = page_seeds(1, recipe.seed, recipe.held_out)
    return [State(task, seed) for task in recipe.tasks for seed in seeds]


def evaluate(
    models: Models, held_out: Sequence[Judged], setting: Setting, folder: epath.Path, reward: bool
) -> dict[str, Any]:
    """The agent's greedy success on held-out seeds, by the environment, how its failures ended
    (explore.Ended: most of a weak agent's are "unparsable", which no judge is needed for), and the
    reward model's figures on the hold-out; evaluation.json."""
    path = folder / EVALUATION
    if path.exists():
        return json.loads(path.read_text())
    recipe = setting.recipe
    config = replace(recipe.exploration, mode="greedy")
    found = episodes(
        "test",
        held_out_starts(recipe),
        models,
        setting,
        config,
        recipe.seed,
        folder / "test",
        False,
    )
    tasks: dict[str, list[bool]] = {}
    for one in found:
        tasks.setdefault(one.task, []).append(bool(one.success))
    asked = recipe.held_out * len(recipe.tasks)
    failures = Counter(one.source["ended"] for one in found if not one.success)
    # Of a start whose first screen broke there is no episode.
    failures["broken"] += asked - len(found)
    figures: dict[str, Any] = {
        # An episode that broke is one that did not succeed, so that nothing leaves the denominator.
        "agent_success": sum(bool(one.success) for one in found) / asked,
        "by_task": {task: sum(wins) / recipe.held_out for task, wins in tasks.items()},
        "failures": {how: n for how, n in failures.most_common() if n},
    }
    if reward:
        measured = reward_metrics.measure(_scored(models, held_out, setting))
        figures["reward_model"] = measured
        for level in ("step", "outcome"):
            figures[f"reward_model_f1_{level}"] = measured["by_level"].get(level, {}).get("f1")
        figures["reward_model_f1"] = measured["f1"]
    run_dir.write_json_atomic(path, figures)
    return figures


def _scored(
    models: Models, rows: Sequence[Judged], setting: Setting
) -> list[reward_metrics.Scored]:
    images = setting.recipe.exploration.earlier
    views = [reward_data.view_of(row, setting.screenshots, images) for row in rows]
    given = scorer(models, setting)([(v, [r.action]) for v, r in zip(views, rows, strict=True)])
    return [
        reward_metrics.Scored(
            score=value,
            label=row.label,
            action=row.action.action,
            source=row.source,
            level=row.level,
            state=f"{row.view.trajectory}/{row.view.step}",
            claims=reward_data.claims_completion(row.action),
        )
        for row, (value,) in zip(rows, given, strict=True)
    ]
