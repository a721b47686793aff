"""DGM's recipes. `selfevolve dgm NAME`; each field is an option: `--help` lists them. No jax here."""

from __future__ import annotations

from selfevolve_jax.dgm.recipe import DGMRecipe, RepairConfig
from selfevolve_jax.dgm.staged import StagesConfig


def quickstart() -> DGMRecipe:
    """A program-repair agent that needs no model: its own code, and a library of parts, make its
    children; tests in a sandbox say who is better.

    selfevolve dgm quickstart
    """
    return DGMRecipe(
        benchmark=RepairConfig(),
        generations=35,
        children=2,
        stages=StagesConfig(sizes=(16, 34), threshold=0.1, by="partial"),
    )
