"""`selfevolve dgm`: runs a recipe. Never imports jax."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from launch.experiment import start
from selfevolve_jax import run_dir
from selfevolve_jax.dgm.recipe import DGMRecipe
from selfevolve_jax.dgm.run import run


@dataclass(frozen=True)
class Run:
    """DGM: an agent rewrites its own code; an archive keeps what a sandbox shows to work.

    recipe: the experiment. run_dir: where it is kept; by default a new folder under runs/.
    resume: go on with the run in run_dir. dry_run: show what would run, and touch nothing.
    """

    recipe: Annotated[DGMRecipe, tyro.conf.arg(name="")]
    run_dir: str | None = None
    resume: bool = False
    dry_run: bool = False
    tracker: tyro.conf.Suppress[Literal["wandb", "trackio"] | None] = None
    hosts: tyro.conf.Suppress[None] = None  # one controller, whatever the cluster


def dgm(options: Run, name: str) -> None:
    """`name` is the recipe as it was typed; it names the default run directory."""
    start(options, name, "dgm", run, _describe)


def _describe(recipe: DGMRecipe) -> str:
    return json.dumps(run_dir.jsonable(recipe), indent=2)
