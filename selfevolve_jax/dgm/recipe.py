"""Everything that defines a DGM run, as one frozen dataclass, and what each arm changes in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from selfevolve_jax.dgm.benchmarks.open import BenchmarkConfig
from selfevolve_jax.dgm.llm import ModelsConfig
from selfevolve_jax.dgm.repair.benchmark import RepairConfig
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
class Budget:
    """What ends a run: dollars and tokens of all models' calls, hours of wall time (None: no end). A
    run that was ended by one goes on with --resume and a higher one."""

    dollars: float | None = None
    tokens: int | None = None
    hours: float | None = None

    def __post_init__(self) -> None:
        for name in ("dollars", "tokens", "hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"budget.{name}={value} must be above 0.")


@dataclass(frozen=True)
class DGMRecipe:
    """One DGM experiment.

    benchmark: what agents are judged by; of program repair the agent is a repair program and needs no
    model, of the others a coding agent that runs on `models`. generations of so many children each;
    workers: jobs at once. gate: who joins the archive (staged.keeps). final_repeats: seeds of the last
    measurement, of the first and the best agent on held-out and transfer tasks. evaluations: HGM's
    budget of attempts. fan_out: where jobs run; ray needs its extra.
    """

    benchmark: RepairConfig | BenchmarkConfig = field(default_factory=RepairConfig)
    models: ModelsConfig | None = None
    generations: int = 80
    children: int = 2
    workers: int = 2
    stages: StagesConfig = field(default_factory=StagesConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    gate: Gate = "all"
    final_repeats: int = 1
    evaluations: int = 800
    budget: Budget = field(default_factory=Budget)
    sandbox: Literal["auto", "bubblewrap", "docker", "podman"] = "auto"
    fan_out: Literal["threads", "ray"] = "threads"
    arms: tuple[ArmName, ...] = ("dgm",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("generations", "children", "workers", "final_repeats", "evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise UserError(f"arms={' '.join(self.arms)}: name some, each once.")
        repair = isinstance(self.benchmark, RepairConfig)
        if repair and self.models is not None:
            raise UserError("models: program repair needs none. Leave them out.")
        if not repair and self.models is None:
            raise UserError(
                f"benchmark {self.benchmark.name} needs a model: --models.coding.model NAME "
                "--models.coding.base-url URL."
            )
        if not repair and "own_parts" in self.arms:
            raise UserError("arms=own_parts: it is of program repair, whose parts can be counted.")


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
