"""`selfevolve ui-genie`: runs a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from launch.dry_run import describe_ui_genie
from launch.experiment import start
from selfevolve_jax import compiles
from selfevolve_jax.cache import cache_folder
from selfevolve_jax.hosts import HostsConfig
from selfevolve_jax.ui_genie.recipe import UIGenieRecipe
from selfevolve_jax.ui_genie.run import run


@dataclass(frozen=True)
class Run:
    """UI-Genie: a GUI agent and its reward model raise each other, round by round.

    recipe: the experiment. run_dir: where it is kept; by default a new folder under runs/.
    resume: go on with the run in run_dir. dry_run: show what would run, and touch nothing.
    """

    recipe: Annotated[UIGenieRecipe, tyro.conf.arg(name="")]
    run_dir: str | None = None
    resume: bool = False
    dry_run: bool = False
    tracker: tyro.conf.Suppress[Literal["wandb", "trackio"] | None] = None
    hosts: tyro.conf.Suppress[HostsConfig] = field(default_factory=HostsConfig)


def ui_genie(options: Run, name: str) -> None:
    """`name` is the recipe as it was typed; it names the default run directory."""
    compiles.keep(cache_folder() / "compiled")
    start(options, name, "ui-genie", run, describe_ui_genie)
