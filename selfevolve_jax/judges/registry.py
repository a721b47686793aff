"""Judges by the names that recipes and the command line use."""

from __future__ import annotations

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.base import Judge
from selfevolve_jax.judges.controls import format_only, random_reward
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.ground_truth import ground_truth
from selfevolve_jax.judges.vote import majority_vote, soft_majority
from selfevolve_jax.tasks.base import AnswerSpec

JUDGES = ("majority", "soft_majority", "ground_truth", "random", "format")


def make_judge(
    name: str,
    spec: AnswerSpec,
    equivalence: Equivalence,
    *,
    seed: int = 0,
    threshold: float = 0.0,
    trained: int | None = None,
) -> tuple[Judge, bool]:
    """The judge called `name`, and whether it needs gold (if not, hand it rows with gold hidden).

    seed: of the random control alone. threshold: of the vote judges alone. trained: of all.
    Raises UserError for an unknown name, and whatever the judge itself refuses.
    """
    if name == "majority":
        judge = majority_vote(spec, equivalence, threshold=threshold, trained=trained)
    elif name == "soft_majority":
        judge = soft_majority(spec, equivalence, threshold=threshold, trained=trained)
    elif name == "ground_truth":
        judge = ground_truth(spec, equivalence, trained=trained)
    elif name == "random":
        judge = random_reward(spec, equivalence, seed, trained=trained)
    elif name == "format":
        judge = format_only(spec, equivalence, trained=trained)
    else:
        raise UserError(f"judge {name!r} is unknown; choose one of {', '.join(JUDGES)}")
    return judge, name == "ground_truth"
