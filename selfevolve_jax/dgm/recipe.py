"""Everything that defines a DGM run, as one frozen dataclass, and what each arm changes in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from selfevolve_jax.dgm.benchmarks.open import BenchmarkConfig
from selfevolve_jax.dgm.llm.config import ModelsConfig
from selfevolve_jax.dgm.selection import SelectionConfig
from selfevolve_jax.dgm.staged import Gate, StagesConfig
from selfevolve_jax.errors import UserError

ArmName = Literal[
    "dgm", "hgm", "random_parents", "no_open_endedness", "no_self_improvement", "own_parts"
]


@dataclass(frozen=True)
class Plan:
    """What an arm does: how parents are selected, whose code makes a child, and, of program repair,
    whether it may take parts from the donor library."""

    selection: SelectionConfig
    maker: Literal["parent", "first"] = "parent"
    donors: bool = True


@dataclass(frozen=True)
class RepairConfig:
    """Program repair, which needs no model. candidates: that an agent may try on one program. quixbugs:
    the folder of a checkout of QuixBugs, whose 40 bugs join the transfer tasks."""

    candidates: int = 100
    quixbugs: str | None = None


@dataclass(frozen=True)
class DGMRecipe:
    """One DGM experiment.

    benchmark: what agents are judged by; of program repair the agent is a repair program and needs no
    model, of the others a coding agent that runs on `models`. agent: a folder with a coding agent of
    your own to begin from. generations: of so many children each. workers: jobs at once. gate: who
    joins the archive (staged.keeps). final_repeats: seeds of the last measurement, of the first and the
    best agent on held-out and transfer tasks. evaluations: HGM's budget of attempts. hours: of wall
    time, after which the run stops. fan_out: where jobs run; ray needs its extra.
    """

    benchmark: RepairConfig | BenchmarkConfig = field(default_factory=RepairConfig)
    agent: str | None = None
    models: ModelsConfig = field(default_factory=ModelsConfig)
    generations: int = 80
    children: int = 2
    workers: int = 2
    stages: StagesConfig = field(default_factory=StagesConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    gate: Gate = "all"
    final_repeats: int = 1
    evaluations: int = 800
    hours: float | None = None
    sandbox: Literal["auto", "bubblewrap", "docker", "podman"] = "auto"
    fan_out: Literal["threads", "ray"] = "threads"
    arms: tuple[ArmName, ...] = ("dgm",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("generations", "children", "workers", "final_repeats", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.hours is not None and not self.hours > 0:
            raise UserError(f"hours={self.hours} must be above 0.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise UserError(f"arms={' '.join(self.arms)}: name some, each once.")
        if isinstance(self.benchmark, RepairConfig):
            if self.models.coding.model:
                raise UserError(
                    f"models.coding.model={self.models.coding.model}: program repair needs no model. "
                    "Leave it out."
                )
            if self.agent is not None:
                raise UserError(
                    f"agent={self.agent}: program repair begins from an agent of its own. Leave it out."
                )
        elif "own_parts" in self.arms:
            raise UserError("arms=own_parts is of program repair alone, which has a donor library.")


def plan_of(recipe: DGMRecipe, arm: ArmName) -> Plan:
    """The paper's ablations (§4.2), random parents, HGM, and for program repair: no donor library."""
    chosen = recipe.selection
    return {
        "dgm": Plan(chosen),
        "hgm": Plan(replace(chosen, way="hgm")),
        "random_parents": Plan(replace(chosen, way="random")),
        "no_open_endedness": Plan(replace(chosen, way="last")),
        "no_self_improvement": Plan(chosen, maker="first"),
        "own_parts": Plan(chosen, donors=False),
    }[arm]
