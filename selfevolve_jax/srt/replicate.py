"""The paper's story on a laptop: every arm on several seeds, and one report of what agrees."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, replace
from typing import Literal

import jax
from etils import epath

from selfevolve_jax import hosts, run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.report.replicate import write
from selfevolve_jax.srt.recipe import SRTRecipe
from selfevolve_jax.srt.run import MAY_CHANGE, run


@dataclass(frozen=True)
class ReplicateRecipe(SRTRecipe):
    """An SRT experiment on several seeds: seed, seed + 1, … . quick: one seed and half of the steps,
    enough to see each arm run."""

    seeds: int = 5
    quick: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds} must be at least 1.")

    def of_seed(self, seed: int) -> SRTRecipe:
        """What one seed runs."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(SRTRecipe)}
        trainer = self.trainer
        if self.quick:
            trainer = replace(trainer, steps=max(1, trainer.steps // 2))
        return SRTRecipe(**{**own, "seed": seed, "trainer": trainer})


def replicate(
    recipe: ReplicateRecipe,
    folder: epath.PathLike,
    *,
    resume: bool = False,
    tracker: Literal["wandb", "trackio"] | None = None,
) -> dict:
    """Runs every seed in RUN/seedN, an ordinary run each, and writes RUN/report.html after each.
    Resumed, it goes on within the arm where it was. Returns {"seeds": {N: summary}, "seconds"}."""
    began, main = time.monotonic(), jax.process_index() == 0
    config = run_dir.jsonable(recipe)
    folder = run_dir.absolute(folder)
    may_change = MAY_CHANGE | {"seeds"}

    def create() -> dict:
        run_dir.create(folder, config, resume, may_change)
        return run_dir.summary_so_far(folder)

    earlier = hosts.first("make the run directory", create)
    summary: dict = {"seeds": {}, "seconds": 0.0}
    for seed in range(recipe.seed, recipe.seed + (1 if recipe.quick else recipe.seeds)):
        part = folder / f"seed{seed}"
        if main:
            print(f"── seed {seed}", flush=True)

        def found(part=part) -> tuple[dict | None, bool]:
            done = run_dir.read_summary(part) if _finished(part, recipe.arms) else None
            return done, (part / run_dir.CONFIG).exists()

        done, again = hosts.first("look at the seed's run", found)
        if done is not None:
            summary["seeds"][str(seed)] = done
        else:
            summary["seeds"][str(seed)] = run(
                recipe.of_seed(seed), part, resume=again, tracker=tracker
            )
        summary["seconds"] = earlier.get("seconds", 0.0) + time.monotonic() - began
        if main:
            run_dir.write_summary(folder, summary)
            write(folder)
    if main:
        print(f"{summary['seconds']:.0f} s. Report: {folder / run_dir.REPORT}", flush=True)
    return summary


def _finished(part: epath.Path, arms: tuple[str, ...]) -> bool:
    """Whether a seed's run has ended with every arm; what is not there has to be run."""
    if not (part / run_dir.SUMMARY).exists():
        return False
    return set(arms) <= set(run_dir.read_summary(part)["arms"])
