"""Early stopping on a small labelled split: the published cure (arXiv 2505.21444, §6), in one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class EarlyStop:
    """patience: evaluations without progress that end a run; 0 is off. min_delta: what the held-out
    mean must gain to count as progress."""

    patience: int = 0
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise UserError(
                f"trainer.early_stop.patience={self.patience} must be 0 (off) or a number of "
                "evaluations."
            )
        if not 0 <= self.min_delta < 1:
            raise UserError(f"trainer.early_stop.min_delta={self.min_delta} must be in [0, 1).")


def waited(means: Sequence[float], min_delta: float) -> int:
    """How many of the latest evaluations brought no progress. means: the held-out mean of every
    evaluation so far, that of step 0 first. Progress is a mean more than min_delta above the mean of
    the last progress; a rise in smaller steps counts once it adds up."""
    mark, since = -float("inf"), 0
    for mean in means:
        if mean > mark + min_delta:
            mark, since = mean, 0
        else:
            since += 1
    return since


def should_stop(means: Sequence[float], config: EarlyStop) -> bool:
    return config.patience > 0 and waited(means, config.min_delta) >= config.patience
