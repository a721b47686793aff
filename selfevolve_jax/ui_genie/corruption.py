"""Successful trajectories made wrong on purpose: negatives for the claim "the task is complete".

UI-Genie's three corruptions (arXiv 2505.21496). Its proportions are unpublished: here they are
options, and what was reached is in the result.

A corruption that leaves the task complete must not be called bad. What guards against it:
  body         a trajectory without its own claim of completion at the end. A step changes the screen
               if it is neither a wait nor a claim and the pictures before and after it differ.
  truncation   claims completion before a step of the body that changes the screen, or before an earlier
               one: something was still to be done. Never on a screen that looks like the last one.
  cross_task   the body up to such a place, then the rest of an episode of the same family with another
               goal, from some step on. It ends on that episode's last screen, which must not look like
               the own last one.
  redundant    the whole body, and then a piece of itself, or the rest of another episode as above, goes
               on. A piece of itself ends on a screen that truncation could end on: one that comes
               before a change, and does not look like the last.
Goals are other where their texts differ once case and spaces are folded; two wordings of one goal pass
for two. Nor is it known that a foreign ending does not fulfil the own goal by chance.

A corrupted trajectory was never lived: its state cannot be replayed, and its `success` is None.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.contract import COMPLETED
from selfevolve_jax.ui_genie.reward_data import By, Judged, folded, row, succeeded
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory, elements_at, names, outcome_at

Kind = Literal["truncation", "cross_task", "redundant"]
Item = TypeVar("Item")
_PURPOSE = 63  # of the draws


@dataclass(frozen=True)
class Proportions:
    """Shares of the three corruptions; they sum to 1. `foreign`: of the redundant ones, the share
    that goes on with another episode rather than with a piece of itself. UserError."""

    truncation: float = 0.4
    cross_task: float = 0.3
    redundant: float = 0.3
    foreign: float = 0.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:
                raise UserError(f"corruption.{field.name} is {value}; fix: a share from 0 to 1")
        shares = [getattr(self, kind) for kind in get_args(Kind)]
        if not math.isclose(sum(shares), 1, abs_tol=1e-9):
            said = ", ".join(f"{k} {s}" for k, s in zip(get_args(Kind), shares, strict=True))
            raise UserError(
                f"corruption shares {said} sum to {sum(shares):g}; fix: shares that sum to 1"
            )


@dataclass(frozen=True)
class Corrupted:
    """trajectories: the corrupted ones; their `source` says of which, how, and where it was cut.
    wanted, reached: by "truncation", "cross_task", "redundant own" and "redundant foreign". Less is
    reached than wanted where the successes hold no more that are not alike; nothing is made in their
    place."""

    trajectories: list[Trajectory]
    wanted: Mapping[str, int]
    reached: Mapping[str, int]


def corrupt(
    trajectories: Sequence[Trajectory],
    by: By,
    proportions: Proportions,
    count: int,
    seed: int,
    family: Callable[[Trajectory], str] = lambda of: of.task,
) -> Corrupted:
    """`count` corruptions of the successes among these trajectories, no two alike.

    by: whose word a success is. family: the app or task within which pieces are exchanged. Every
    success is used once before any is used twice. The screenshots are those of the trajectories.
    """
    whole = [of for of in trajectories if succeeded(of, by)]
    related: dict[tuple[str, int, int], list[Trajectory]] = defaultdict(list)
    for of in whole:
        related[_kin(of, family)].append(of)
    wanted = _wanted(proportions, count)
    makers = {
        "truncation": _truncations,
        "cross_task": lambda of, rng: _foreign(of, related[_kin(of, family)], rng, "cross_task"),
        "redundant own": _repeats,
        "redundant foreign": lambda of, rng: _foreign(
            of, related[_kin(of, family)], rng, "redundant"
        ),
    }
    made: list[Trajectory] = []
    reached: Counter[str] = Counter()
    for number, (kind, maker) in enumerate(makers.items()):
        order = np.random.default_rng([seed, _PURPOSE, number]).permutation(len(whole))
        ways = [
            maker(whole[k], np.random.default_rng([seed, _PURPOSE, number, 1, int(k)]))
            for k in order
        ]
        found = list(itertools.islice(_in_turn(ways), wanted[kind]))
        reached[kind] = len(found)
        made += [_named(of, by) for of in found]
    return Corrupted(made, wanted, dict(reached))


def corruption_rows(corrupted: Sequence[Trajectory]) -> list[Judged]:
    """For each corrupted trajectory, or slip (slips.py), the claim of completion on its last screen,
    which is bad."""
    return [
        row(
            of,
            len(of.steps),
            COMPLETED,
            False,
            of.source["corruption"],
            "construction",
            "outcome",
        )
        for of in corrupted
    ]


def _wanted(proportions: Proportions, count: int) -> dict[str, int]:
    """Whole numbers that sum to `count`, each within 1 of its share (largest remainders)."""
    own = 1 - proportions.foreign
    shares = {
        "truncation": proportions.truncation,
        "cross_task": proportions.cross_task,
        "redundant own": proportions.redundant * own,
        "redundant foreign": proportions.redundant * proportions.foreign,
    }
    wanted = {kind: math.floor(count * share + 1e-9) for kind, share in shares.items()}
    rest = sorted(shares, key=lambda kind: wanted[kind] - count * shares[kind])
    for kind in rest[: count - sum(wanted.values())]:
        wanted[kind] += 1
    return wanted


def _kin(of: Trajectory, family: Callable[[Trajectory], str]) -> tuple[str, int, int]:
    # a piece from a frame of another size would have coordinates of that size
    return family(of), of.frame.width, of.frame.height


def _in_turn(ways: Sequence[Iterator[Trajectory]]) -> Iterator[Trajectory]:
    """The first of each, then the second of each, and so on."""
    for turn in itertools.zip_longest(*ways):
        yield from (of for of in turn if of is not None)


def _unfinished(of: Trajectory) -> list[int]:
    """The steps of the body before which the task was not complete yet."""
    seen, end = names(of), outcome_at(of)
    changes = [i for i in range(end) if _acts(of.steps[i]) and seen[i] != seen[i + 1]]
    return [i for i in range(changes[-1] + 1) if seen[i] != seen[end]] if changes else []


def _acts(step: Step) -> bool:
    return step.action is not None and step.action.action not in ("wait", "terminate")


def _truncations(of: Trajectory, rng: np.random.Generator) -> Iterator[Trajectory]:
    for cut in _shuffled(_unfinished(of), rng):
        yield _spliced(of, "truncation", cut, None)


def _repeats(of: Trajectory, rng: np.random.Generator) -> Iterator[Trajectory]:
    pieces = [(first, last) for last in _unfinished(of) for first in range(last)]
    for first, last in _shuffled(pieces, rng):
        yield _spliced(of, "redundant", outcome_at(of), (of, first, last))


def _foreign(
    of: Trajectory, related: Sequence[Trajectory], rng: np.random.Generator, kind: Kind
) -> Iterator[Trajectory]:
    """The body up to a cut, then another's rest; each partner once before any is used twice."""
    cuts = _unfinished(of) if kind == "cross_task" else [outcome_at(of)]
    partners = [
        other
        for other in related
        if folded(other.goal) != folded(of.goal)
        and names(other)[outcome_at(other)] != names(of)[outcome_at(of)]
    ]

    def with_partner(other: Trajectory, draw: int) -> Iterator[Trajectory]:
        end = outcome_at(other)
        for cut, first in _shuffled(
            list(itertools.product(cuts, range(end))), np.random.default_rng(draw)
        ):
            yield _spliced(of, kind, cut, (other, first, end))

    draws = rng.integers(2**63, size=len(partners))
    order = rng.permutation(len(partners))
    yield from _in_turn([with_partner(partners[k], int(draws[k])) for k in order])


def _spliced(
    of: Trajectory, kind: Kind, cut: int, piece: tuple[Trajectory, int, int] | None
) -> Trajectory:
    """The steps before `cut`, then those of the piece (trajectory, first step, step that ends it)."""
    other, first, end = piece or (of, cut, cut)
    # what was thought of a step was thought in another place
    steps = tuple(
        dataclasses.replace(step, score=None, label=None)
        for step in (*of.steps[:cut], *other.steps[first:end])
    )
    told = {"corruption": kind, "of": of.id, "cut": cut}
    if piece is not None:
        told |= {"piece_of": other.id, "piece": [first, end]}
    return dataclasses.replace(
        of,
        steps=steps,
        final=names(other)[end],
        final_elements=elements_at(other, end),
        done=False,
        success=None,
        outcome_score=None,
        source={**told, "parent": dict(of.source)},
    )


def _named(of: Trajectory, by: By) -> Trajectory:
    told = of.source
    place = "-".join(str(part) for part in (told["cut"], *told.get("piece", ())))
    other = told.get("piece_of")
    id = f"{told['of']}~{told['corruption']}~{place}" + (f"~{other}" if other else "")
    return dataclasses.replace(of, id=id, source={**told, "success_by": by})


def _shuffled(items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
    return [items[k] for k in rng.permutation(len(items))]
