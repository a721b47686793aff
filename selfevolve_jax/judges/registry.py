"""Judges by the names that recipes and the command line use."""

from __future__ import annotations

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.base import Judge
from selfevolve_jax.judges.certainty import rent, self_certainty
from selfevolve_jax.judges.controls import format_only, random_reward
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.ground_truth import ground_truth
from selfevolve_jax.judges.novelty import evol
from selfevolve_jax.judges.offline import offline
from selfevolve_jax.judges.paired import co_reward
from selfevolve_jax.judges.vote import empo, majority_vote, soft_majority
from selfevolve_jax.tasks.base import AnswerSpec

_VOTES = {
    "majority": majority_vote,
    "soft_majority": soft_majority,
    "empo": empo,
    "co_reward": co_reward,
    "evol": evol,
}
_OTHERS = {
    "self_certainty": self_certainty,
    "rent": rent,
    "format": format_only,
    "ground_truth": ground_truth,
    "offline": offline,
}

JUDGES = (*_VOTES, *_OTHERS, "random")
# What a judge asks of the loop beyond rows and texts: token statistics of the rollout, and batches
# that `paired.with_views` has doubled.
NEEDS_STATS = frozenset({"self_certainty", "rent"})
NEEDS_PAIRS = frozenset({"co_reward"})


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
    if name in _VOTES:
        judge = _VOTES[name](spec, equivalence, threshold=threshold, trained=trained)
    elif name in _OTHERS:
        judge = _OTHERS[name](spec, equivalence, trained=trained)
    elif name == "random":
        judge = random_reward(spec, equivalence, seed, trained=trained)
    else:
        raise UserError(f"judge {name!r} is unknown; choose one of {', '.join(JUDGES)}")
    return judge, name == "ground_truth"
