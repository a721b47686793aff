"""The arms of an SRT experiment by name: a judge, and at most one thing that is done otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from typing import Literal

from selfevolve_jax.errors import UserError
from selfevolve_jax.trainer_config import TrainerConfig


@dataclass(frozen=True)
class LabelsConfig:
    """The answers that the policy gives to the training problems before any training: pseudo-labels of
    the arm `offline`, ranks of the curricula.

    path: a folder that `selfevolve label` wrote; by default the run labels its own problems, once for
    all arms. samples: votes a problem. fraction: the part of the problems that a curriculum keeps.
    """

    path: str | None = None
    samples: int = 32
    fraction: float = 1 / 3

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"labels.samples={self.samples} must be at least 1.")
        if not 0 < self.fraction <= 1:
            raise UserError(f"labels.fraction={self.fraction} must be above 0 and at most 1.")


@dataclass(frozen=True)
class Arm:
    """judge: by its name in `judges.registry`. change: what this arm sets in the trainer. labels: what
    it does with the labels of LabelsConfig: votes are replaced by them, or training keeps to the
    problems at the top of that rank."""

    judge: str
    change: Callable[[TrainerConfig], TrainerConfig] = lambda config: config
    labels: Literal["pseudo_labels", "pass_rate", "majority_fraction"] | None = None


def _early_stop(config: TrainerConfig) -> TrainerConfig:
    if config.early_stop.patience:
        return config
    return replace(config, early_stop=replace(config.early_stop, patience=3))


def _filter(config: TrainerConfig) -> TrainerConfig:
    """arXiv 2505.21444 v2: majorities under 0.6 are dropped and the batch is filled up again."""
    return replace(
        config,
        vote_threshold=config.vote_threshold or 0.6,
        resample=config.resample or 4,
    )


def _teacher(config: TrainerConfig) -> TrainerConfig:
    return config if config.teacher_decay is not None else replace(config, teacher_decay=0.99)


def _rollback(config: TrainerConfig) -> TrainerConfig:
    return replace(config, alarm="rollback")


def _samples(config: TrainerConfig, n: int) -> TrainerConfig:
    """Another number of votes a problem. Prompts that all samples share one copy of still do."""
    shared = config.shared_prompt
    shared = n if shared == config.samples_per_prompt else gcd(shared, n)
    return replace(config, samples_per_prompt=n, trained_per_prompt=None, shared_prompt=shared)


# The arms that use gold: to reward, to choose problems, to choose when to end.
READ_GOLD = ("ground_truth", "curriculum_pass_rate", "early_stop")

# "random" and "format" are the controls without which no gain can be believed ("spurious
# rewards").
ARMS = {
    "srt": Arm("majority"),
    "ground_truth": Arm("ground_truth"),
    "random": Arm("random"),
    "format": Arm("format"),
    "early_stop": Arm("majority", _early_stop),
    "rollback": Arm("majority", _rollback),
    "offline": Arm("offline", labels="pseudo_labels"),
    "curriculum_pass_rate": Arm("majority", labels="pass_rate"),
    "curriculum_majority": Arm("majority", labels="majority_fraction"),
    "filter": Arm("majority", _filter),
    "teacher": Arm("majority", _teacher),
    **{f"n{n}": Arm("majority", partial(_samples, n=n)) for n in (4, 8, 16, 32, 64)},
    "soft": Arm("soft_majority"),
    "empo": Arm("empo"),
    "self_certainty": Arm("self_certainty"),
    "rent": Arm("rent"),
    "co_reward": Arm("co_reward"),
    "evol": Arm("evol"),
}
