"""Everything that defines a UI-Genie run, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from selfevolve_jax.errors import UserError
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.ui_genie.contract import Style
from selfevolve_jax.ui_genie.corruption import Proportions
from selfevolve_jax.ui_genie.explore import Exploration
from selfevolve_jax.ui_genie.instructions import InstructionConfig
from selfevolve_jax.ui_genie.reward_model import RewardTraining
from selfevolve_jax.ui_genie.tiny import BaseConfig
from selfevolve_jax.ui_genie.training import check_length

ArmName = Literal["co_evolution", "frozen_reward", "no_reward"]


@dataclass(frozen=True)
class AgentTraining:
    """Agent SFT: the paper's settings. batch: views in an optimiser step. epochs: over the successes of
    a round, those of the rounds before it and, with `replay`, the demonstrations; 1 by default. steps:
    of every training in place of epochs, so that where the rate falls all share one compiled step.
    from_first: each round trains round 0's agent anew on all of these, as STaR does (arXiv 2203.14465),
    which costs less of what it knew; else, as in the paper, the agent of the round before goes on."""

    batch: int = 160
    epochs: float | None = None
    steps: int | None = None
    replay: bool = True
    from_first: bool = False
    accumulate: int = 1
    train_vision: bool = False
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-5, schedule="cosine", warmup_steps=10
        )
    )

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"agent.{name}={getattr(self, name)} must be at least 1.")
        check_length("agent.", self.epochs, self.steps)


@dataclass(frozen=True)
class MiniWoBConfig:
    """tabs of one browser. browser: the program's path; the first Chromium on PATH if None."""

    tabs: int = 8
    browser: str | None = None

    def __post_init__(self) -> None:
        if self.tabs < 1:
            raise UserError(f"screens.tabs={self.tabs} must be at least 1.")


@dataclass(frozen=True)
class RewardData:
    """What a round's reward-model data is made of.

    continuations: sampled after each step of a failed episode (Math-Shepherd). failures: at most so
    many failed episodes of a round are labelled in this way. proposals: of the agent for each step of
    a success, held against it by rule, and at most so many clicks on other elements, or other texts,
    there.
    corrupted: corruptions for every success. slips: other elements that each click of a round's
    successes is put on to play it again (slips.py); 0: nothing is played again.
    """

    continuations: int = 5
    failures: int = 64
    proposals: int = 4
    corrupted: float = 1.0
    slips: int = 2
    proportions: Proportions = field(default_factory=Proportions)

    def __post_init__(self) -> None:
        for name, least in (("continuations", 1), ("failures", 0), ("proposals", 1), ("slips", 0)):
            if getattr(self, name) < least:
                raise UserError(f"data.{name}={getattr(self, name)} must be at least {least}.")
        if self.corrupted < 0:
            raise UserError(f"data.corrupted={self.corrupted} must not be negative.")


@dataclass(frozen=True)
class UIGenieRecipe:
    """One UI-Genie experiment: a GUI agent and its reward model, raised round by round.

    tasks: of MiniWoB++, each with a script (demos.SCRIPTS). new_tasks: those of them that are not
    demonstrated: what is known of them is what the rounds find out. demonstrations: the seeds of each
    of the others that the agent and the reward model begin from. starts: fresh seeds of each task in a
    round. held_out: seeds of each that both are tested on, and nothing learns from. style: how prompts
    are written (contract). exploration: how a round's episodes are found. instructions: whose words a
    round's starts are told. chunk: starts explored between two savings.
    """

    tasks: tuple[str, ...]
    new_tasks: tuple[str, ...] = ()
    policy: BaseConfig | CheckpointConfig = field(default_factory=BaseConfig)
    style: Style = "full"
    screens: MiniWoBConfig = field(default_factory=MiniWoBConfig)
    demonstrations: int = 10
    starts: int = 10
    held_out: int = 10
    rounds: int = 3
    chunk: int = 64
    exploration: Exploration = field(default_factory=Exploration)
    instructions: InstructionConfig = field(default_factory=InstructionConfig)
    max_new_tokens: int = 256
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    agent: AgentTraining = field(default_factory=AgentTraining)
    reward: RewardTraining = field(default_factory=RewardTraining)
    data: RewardData = field(default_factory=RewardData)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    arms: tuple[ArmName, ...] = ("co_evolution", "frozen_reward", "no_reward")
    seed: int = 0

    def __post_init__(self) -> None:
        from selfevolve_jax.ui_genie.demos import SCRIPTS

        unknown = [task for task in self.tasks if task not in SCRIPTS]
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(
                f"tasks={' '.join(self.tasks)}: name some, each once, of those that have a script: "
                f"{', '.join(SCRIPTS)}."
            )
        if any(t not in self.tasks for t in self.new_tasks) or set(self.tasks) <= {*self.new_tasks}:
            raise UserError(
                f"new_tasks={' '.join(self.new_tasks)}: name some of tasks={' '.join(self.tasks)}, and "
                "not all of them, as the agent begins from demonstrations of the others; none, and all "
                "are demonstrated."
            )
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise UserError(f"arms={' '.join(self.arms)}: name some, each once.")
        for name in ("demonstrations", "starts", "held_out", "rounds", "chunk", "max_new_tokens"):
            if not getattr(self, name) >= 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("demonstrations", "starts", "held_out"):
            if getattr(self, name) >= SEEDS_APART:
                raise UserError(f"{name}={getattr(self, name)} must be below {SEEDS_APART}.")
        if self.rounds > _PURPOSES - 2:
            raise UserError(f"rounds={self.rounds} must be at most {_PURPOSES - 2}.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if self.exploration.mode not in ("beam", "best_of_n"):
            raise UserError(
                f"exploration.mode={self.exploration.mode}: a round's episodes are chosen by the "
                "reward model. Use beam or best_of_n; the arm no_reward samples."
            )

    @property
    def demonstrated(self) -> tuple[str, ...]:
        return tuple(task for task in self.tasks if task not in self.new_tasks)

    @property
    def explored(self) -> tuple[str, ...]:
        return self.new_tasks or self.tasks


# The page's seeds of one purpose lie together.
SEEDS_APART = 10_000
_PURPOSES = 100  # demonstrations, what is held out, and the rounds


def page_seeds(purpose: int, seed: int, n: int) -> range:
    """n of the pages' own random seeds: for a purpose (0: demonstrations, 1: held out, 1 + a round's
    number), no two runs' or purposes' alike."""
    first = (seed * _PURPOSES + purpose) * SEEDS_APART
    return range(first, first + n)
