"""The arms of an MM-UPT experiment by name: a judge, and at most one thing that is done otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from selfevolve_jax.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Arm:
    """judge: by its name in `judges.registry`. filtered: rows whose majority fraction is under the
    recipe's `filter_below` leave the loss. questions: it trains on questions that the base policy wrote
    in this way (`synthetic`), in place of the task's."""

    judge: str
    filtered: bool = False
    questions: Literal["direct", "in_context"] | None = None


# The arms that use gold.
READ_GOLD = ("supervised",)

# "random" is the control without which no gain can be believed.
ARMS = {
    "mm_upt": Arm("majority"),
    "supervised": Arm("ground_truth"),
    "random": Arm("random"),
    "filter": Arm("majority", filtered=True),
    "direct": Arm("majority", questions="direct"),
    "in_context": Arm("majority", questions="in_context"),
}


def trainer_of(arm: str, trainer: TrainerConfig, filter_below: float) -> TrainerConfig:
    """The trainer's options as this arm wants them."""
    return replace(trainer, vote_threshold=filter_below) if ARMS[arm].filtered else trainer
