"""The Darwin Gödel Machine (arXiv 2505.22954): an archive of agents grows, arm by arm.

RUN/config.json, summary.json, report.html
RUN/arms/ARM/…               controller.py
RUN/calls.jsonl, calls/      every call of a model
RUN/STOP                     made by you, ends the run at once; remove it and --resume
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfevolve_jax import run_dir
from selfevolve_jax.dgm import archive, events, staged
from selfevolve_jax.dgm.contract import BudgetSpent
from selfevolve_jax.dgm.controller import run_arm
from selfevolve_jax.dgm.llm.config import ROLES
from selfevolve_jax.dgm.recipe import DGMRecipe, plan_of
from selfevolve_jax.dgm.tools import first_agent, open_tools
from selfevolve_jax.dgm.work import Stopped
from selfevolve_jax.errors import UserError

_OF_ENDPOINT = (
    "base_url",
    "key_env",
    "timeout_s",
    "attempts",
    "backoff_s",
    "price_in",
    "price_out",
)
# What --resume may change: none of it alters what the run has done so far.
MAY_CHANGE = frozenset(
    (
        *("arms", "evaluations", "fan_out", "generations", "hours", "sandbox", "workers"),
        *("models.budget", *(f"models.{r}.{o}" for r in ROLES for o in _OF_ENDPOINT)),
    )
)
STOP = "STOP"


def run(
    recipe: DGMRecipe, folder: str, *, resume: bool = False, tracker: str | None = None
) -> dict[str, Any]:
    """Runs every arm of the recipe; returns the summary that it also writes and prints."""
    if run_dir.is_remote(folder):
        raise UserError(
            f"--run-dir {folder}: dgm keeps its archive on a local disk. Name a folder."
        )
    if tracker is not None:
        raise UserError(f"--tracker {tracker}: dgm logs to its run directory alone. Leave it out.")
    place = Path(run_dir.absolute(folder))
    config = run_dir.jsonable(recipe)
    run_dir.check(place, config, resume, MAY_CHANGE)
    first, stop = first_agent(recipe), _stopper(recipe, place)
    summary: dict[str, Any] = {"arms": {}}
    for arm in recipe.arms:
        plan = plan_of(recipe, arm)
        first_arm = not summary["arms"]
        with open_tools(recipe, plan, place, _preflight if first_arm else _nothing) as tools:
            if first_arm:
                train = [task.id for task in tools.benchmark.tasks if task.split == "train"]
                staged.stages(train, recipe.stages, recipe.seed)  # are there enough?
                run_dir.create(place, config, resume, MAY_CHANGE)
                _begin(tools, say)
            say(f"{arm}: {len(tools.benchmark.tasks)} tasks of {tools.benchmark.name}")
            try:
                figures = run_arm(recipe, plan, place / "arms" / arm, tools, first, stop, say)
            except Stopped as stopped:
                raise UserError(
                    f"{arm} stopped: {stopped}. Nothing is lost. "
                    f"Fix: raise the budget or mend that, then --run-dir {folder} --resume."
                ) from None
        summary["arms"][arm] = figures
        summary["seconds"] = round(seconds_spent(place), 1)
        run_dir.write_summary(place, summary)
    say(headline(summary))
    say(f"{summary['seconds']:.0f} s. Report: {_report(place)}")
    return summary


def _begin(tools: Any, say: Any) -> None:
    for sentence in tools.box.unenforced:
        say(f"sandbox ({tools.box.name}): {sentence}")
    for what, why in tools.benchmark.excluded.items():
        say(f"not counted: {what}: {why}")
    if tools.models is not None:
        if torn := tools.models.torn:
            say(f"calls.jsonl: a torn last line of {torn} bytes was cut off")
        tools.models.log_preflight()


def _preflight(models: Any) -> None:
    try:
        models.preflight(say)
    except BudgetSpent as spent:
        raise UserError(f"{spent} Fix: raise it.") from None


def _nothing(models: Any) -> None:
    pass


def _report(place: Path) -> Any:
    from selfevolve_jax.report import dgm_run

    return dgm_run.write_page(place)


def _stopper(recipe: DGMRecipe, place: Path) -> Any:
    """() -> why to stop now. The hours of earlier lives count."""
    hours, before, began = recipe.hours, seconds_spent(place), time.monotonic()

    def stop() -> str:
        if (place / STOP).exists():
            raise Stopped(f"{place / STOP} is there")
        spent = (before + time.monotonic() - began) / 3600
        if hours is not None and spent >= hours:
            return f"hours={hours} are spent"
        return ""

    return stop


def seconds_spent(place: Path) -> float:
    """Of all arms and lives of a run: of each life the time from its first event to its last."""
    return sum(
        archive.seconds(events.read(log)[0]) for log in (place / "arms").glob(f"*/{events.NAME}")
    )


def say(line: str) -> None:
    print(line, flush=True)


def headline(summary: Mapping[str, Any]) -> str:
    """The figures that the terminal prints last: solve rates of the first agent and of the best."""
    lines = [f"{'solved, first → best':<22}{'held out':>18}{'transfer':>18}{'agents':>8}"]
    for arm, figures in summary["arms"].items():
        before, after = figures["before"], figures["after"]
        cells = [
            f"{before[split]:.3f} → {after[split]:.3f}" if split in after else "none"
            for split in ("held_out", "transfer")
        ]
        lines.append(
            f"{arm:<22}" + "".join(f"{cell:>18}" for cell in cells) + f"{figures['agents']:>8}"
        )
    return "\n".join(lines)
