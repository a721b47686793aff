"""`selfevolve srt`: runs a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from launch.dry_run import describe
from launch.experiment import start
from selfevolve_jax import compiles
from selfevolve_jax.cache import cache_folder
from selfevolve_jax.hosts import HostsConfig
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
    tracker: also log to wandb or trackio. hosts: how the processes of one run find each other.
    """

    recipe: Annotated[SRTRecipe | ReplicateRecipe | LevelsRecipe, tyro.conf.arg(name="")]
    run_dir: str | None = None
    resume: bool = False
    dry_run: bool = False
    tracker: Literal["wandb", "trackio"] | None = None
    hosts: HostsConfig = field(default_factory=HostsConfig)


def srt(options: Run, name: str) -> None:
    """`name` is the recipe as it was typed; it names the default run directory."""
    compiles.keep(cache_folder() / "compiled")
    start(options, name, "srt", RUNNERS[type(options.recipe)], describe)
