"""What the commands that run a recipe have in common: `selfevolve srt`, `selfevolve mm-upt`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from launch.messages import complain
from selfevolve_jax import hosts
from selfevolve_jax.errors import UserError


def start(
    options: Any,
    name: str,
    system: str,
    go: Callable[..., Any],
    describe: Callable[[Any], str],
) -> None:
    """Runs go(recipe, folder, resume=, tracker=), or prints describe(recipe).

    options: has recipe, run_dir, resume, dry_run, tracker and hosts (None: one process). name: the
    recipe as it was typed, which with the system's name makes the default run directory."""
    if options.resume and options.run_dir is None:
        raise UserError("--resume needs --run-dir, the folder of the run to go on with.")
    if options.dry_run:
        print(describe(options.recipe))
        return
    say_failed_saves_once()
    if options.hosts is not None:
        hosts.connect(options.hosts, complain)
    folder = options.run_dir
    if folder is None:
        stem = f"runs/{system}-{name.rpartition(':')[2]}"
        folder = hosts.first("name the run", lambda: time.strftime(f"{stem}-%Y%m%d-%H%M%S"))
    go(options.recipe, folder, resume=options.resume, tracker=options.tracker)


def say_failed_saves_once() -> None:
    """Orbax and TensorStore tell of a failed save at length, from each of their threads, besides
    raising it; the message that `checkpoint.disk_errors` makes of it is enough."""
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable


def _unraisable(told) -> None:
    if str(told.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(told)
