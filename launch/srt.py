"""`selfevolve srt`: runs a recipe."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from launch.dry_run import describe
from selfevolve_jax.errors import UserError
from selfevolve_jax.srt.levels import LevelsRecipe, run_levels
from selfevolve_jax.srt.recipe import SRTRecipe
from selfevolve_jax.srt.replicate import ReplicateRecipe, replicate
from selfevolve_jax.srt.run import run

RUNNERS = {SRTRecipe: run, ReplicateRecipe: replicate, LevelsRecipe: run_levels}


@dataclass(frozen=True)
class Run:
    """SRT: a policy trains on its own majority vote, beside control arms.

    recipe: the experiment. run_dir: where it is kept; by default a new folder under runs/.
    resume: go on with the run in run_dir. dry_run: show what would run, and touch nothing.
    tracker: also log to wandb or trackio.
    """

    recipe: Annotated[SRTRecipe | ReplicateRecipe | LevelsRecipe, tyro.conf.arg(name="")]
    run_dir: str | None = None
    resume: bool = False
    dry_run: bool = False
    tracker: Literal["wandb", "trackio"] | None = None


def srt(options: Run, name: str) -> None:
    """`name` is the recipe as it was typed; it names the default run directory."""
    if options.resume and options.run_dir is None:
        raise UserError("--resume needs --run-dir, the folder of the run to go on with.")
    if options.dry_run:
        print(describe(options.recipe))
        return
    _say_failed_saves_once()
    folder = options.run_dir
    if folder is None:
        folder = f"runs/srt-{name.rpartition(':')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    go = RUNNERS[type(options.recipe)]
    go(options.recipe, folder, resume=options.resume, tracker=options.tracker)


def _say_failed_saves_once() -> None:
    """Orbax and TensorStore tell of a failed save at length, from each of their threads, besides
    raising it; the message that `checkpoint.disk_errors` makes of it is enough."""
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable


def _unraisable(told) -> None:
    if str(told.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(told)
