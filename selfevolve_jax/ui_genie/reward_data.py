"""What a reward model learns from: judged actions, each with the word of where its label came from.

The sources are UI-Genie's (arXiv 2505.21496): demonstrations, an agent's own actions held against
them, outcomes. Wrong actions that the present model takes for good ones, corruptions and step labels
by continuation are in hard_negatives.py, corruption.py and shepherd.py.

Whose word an outcome is, is said by an argument and kept in every row: with by="judge" or "votes"
nothing here looks at the environment's own verdict (`Trajectory.success`), with by="environment"
nothing else counts.
"""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import actions, trajectory
from selfevolve_jax.ui_genie.actions import Action, Failure, Frame
from selfevolve_jax.ui_genie.contract import COMPLETED, View
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.evaluators import POINTED, Truth, strict
from selfevolve_jax.ui_genie.trajectory import Trajectory

By = Literal["environment", "judge", "votes"]  # whose word an outcome is: see `succeeded`
Verdict = Literal["environment", "judge", "votes", "demonstration", "rule", "construction"]
Level = Literal["step", "outcome"]
Source = Literal[
    "demonstration",  # the steps of demonstrations
    "rule_verified",  # an agent's own actions, held against those of successes
    "hard_negative",  # hard_negatives.py
    "shepherd",  # an agent's own steps, by whether success could still be reached
    "outcome",  # the ends of successes
    "real_failure",  # the ends of an agent's real failures
    "truncation",  # corruption.py
    "cross_task",
    "redundant",
    "omitted",  # slips.py
    "substituted",
]
# In a trajectory's source: the share of its start's samples that did the same.
AGREEMENT = "agreement"
_BALANCED = 62  # purpose of draws


@dataclass(frozen=True)
class Seen:
    """A view, its pictures by name: all that was seen before step `step` (counted from 0, may be the
    number of steps: the last screen) of the trajectory with this id. screenshots: one for each entry
    of the history, then the current one."""

    trajectory: str
    step: int
    goal: str
    history: tuple[str, ...]
    screenshots: tuple[str, ...]
    frame: Frame
    elements: tuple[Element, ...]


@dataclass(frozen=True)
class Judged:
    """One row to train or test a reward model on: was this action good in this view?

    level: "outcome" where the action claims that the task is complete (contract.COMPLETED).
    verdict: whose word the label is. "construction": the row was made to be wrong.
    provenance: what else its source knows, and the trajectory's own provenance as "of"; JSON values.
    """

    view: Seen
    action: Action
    label: bool
    level: Level
    source: Source
    verdict: Verdict
    provenance: Mapping[str, Any]


def row(
    of: Trajectory,
    step: int,
    action: Action,
    label: bool,
    source: Source,
    verdict: Verdict,
    level: Level = "step",
    provenance: Mapping[str, Any] | None = None,
) -> Judged:
    """The row for one action in the view before a step."""
    seen = Seen(
        trajectory=of.id,
        step=step,
        goal=of.goal,
        history=tuple(done.action_desc for done in trajectory.done_before(of, step)),
        screenshots=trajectory.seen_at(of, step),
        frame=of.frame,
        elements=trajectory.elements_at(of, step),
    )
    told = {**(provenance or {}), "of": dict(of.source)}
    return Judged(seen, action, label, level, source, verdict, told)


def view_of(judged: Judged, screenshots_folder: str | os.PathLike[str], images: int = 1) -> View:
    """The view of a row, its pictures read: at most `images` before the current one. UserError."""
    seen = judged.view
    what = f"the row on step {seen.step} of trajectory {seen.trajectory}"
    shown = seen.screenshots[-(1 + images) :]
    pngs = tuple(trajectory.read_png(what, screenshots_folder, name) for name in shown)
    return View(seen.goal, seen.history, pngs, seen.frame, seen.elements)


def succeeded(of: Trajectory, by: By) -> bool | None:
    """Whether an episode succeeded; None where nobody says so.

    environment: by its own word. judge: the reward model's P(+) for the end is above 0.5. votes: what
    the judge says where as much is said by the samples of its start, of which at least half did the
    same after a success and fewer after a failure; None where the two differ, and as the judge where
    no votes were counted. This is who teaches the reward model. An agent that errs does so in many
    ways, so of what it does twice more is right; but what all of its samples do may be an error too,
    and a reward model that is taught it takes it for right from then on (docs/ui_genie.md has the
    figures).
    """
    if by == "environment":
        return of.success
    if by not in ("judge", "votes"):
        raise ValueError(f"by is {by!r}, not one of {get_args(By)}")
    if of.outcome_score is None:
        return None
    agreement = of.source.get(AGREEMENT) if by == "votes" else None
    judged = of.outcome_score > 0.5
    if agreement is None or judged == (agreement >= 0.5):
        return judged
    return None


def unworded(actions: Iterable[Action]) -> tuple[Action, ...]:
    """What was done, whatever words were said of it."""
    return tuple(dataclasses.replace(action, action_desc="") for action in actions)


def demonstration_rows(demonstrations: Sequence[Trajectory]) -> list[Judged]:
    """Every step of a demonstration is good. Its claim to be complete, if it makes one, is the
    business of `outcome_rows`. UserError for one that the environment says failed, and for a step
    without an action."""
    rows = []
    for demo in demonstrations:
        if demo.success is False:
            raise UserError(
                f"demonstration {demo.id} failed by its environment's verdict. Fix: leave it out."
            )
        for i, step in enumerate(demo.steps):
            if step.action is None:
                raise UserError(
                    f"demonstration {demo.id} has no action at step {i}. Fix: leave it out."
                )
            if not claims_completion(step.action):
                rows.append(row(demo, i, step.action, True, "demonstration", "demonstration"))
    return rows


def outcome_rows(trajectories: Sequence[Trajectory], by: By) -> list[Judged]:
    """The claim "the task is complete" on the last screen: good after a success (source "outcome"),
    bad after a failure ("real_failure", so that training may leave real failures out and a hold-out
    have them). Trajectories without a verdict give no row."""
    rows = []
    for of in trajectories:
        label = succeeded(of, by)
        if label is not None:
            source: Source = "outcome" if label else "real_failure"
            end = trajectory.outcome_at(of)
            rows.append(row(of, end, COMPLETED, label, source, by, "outcome"))
    return rows


def rule_verified(
    successes: Sequence[Trajectory],
    by: By,
    propose: Callable[[Sequence[tuple[Trajectory, int]]], Sequence[Sequence[str]]],
) -> tuple[list[Judged], Counter[str]]:
    """An agent's own actions in the states of successes, judged by `same_action`: demonstrations, or
    what succeeded by the judge's word, which is then whose word stands behind the rule's.

    propose: for (success, step) pairs, the texts that the agent wrote there; one call.

    Returns the rows and counts: "positive", "negative", "undecided" (no row), "repeated" (an action
    that the agent wrote there before; the row's "samples" says how often), and "unparsable: KIND".
    """
    asked = [
        (of, i) for of in successes for i, step in enumerate(of.steps) if step.action is not None
    ]
    rows: list[Judged] = []
    counts: Counter[str] = Counter()
    for (of, i), texts in zip(asked, propose(asked), strict=True):
        written: Counter[Action] = Counter()
        for text in texts:
            parsed = actions.parse(text, of.frame)
            if isinstance(parsed, Failure):
                counts[f"unparsable: {parsed.kind}"] += 1
            else:
                written[parsed] += 1
        for proposed, times in written.items():
            truth = of.steps[i].action
            assert truth is not None
            label = same_action(proposed, truth, of.frame, of.steps[i].elements)
            counts["repeated"] += times - 1
            if label is None:
                counts["undecided"] += 1
                continue
            counts["positive" if label else "negative"] += 1
            level: Level = "outcome" if claims_completion(proposed) else "step"
            told = {"samples": times, "truth": actions.as_record(truth), "success_by": by}
            rows.append(row(of, i, proposed, label, "rule_verified", "rule", level, told))
    return rows, counts


def same_action(
    proposed: Action, truth: Action, frame: Frame, elements: Sequence[Element]
) -> bool | None:
    """Whether an action does what the true one does, by rule; None where the rule cannot say.

    Same type, and: click and long_press hit the true target, which is the smallest element under the
    true point; a swipe goes in the same direction; a button and a status are equal; an app's name is
    equal after evaluators.strict's folding; typed text is equal after Unicode's NFC and running
    spaces together, its case kept, since fields exist that want capitals; wait is wait.

    None: no element lies under the true point; or the point lies beside the target but the smallest
    element under it holds the whole target (a label's button, say), which may do the same.
    """
    box = None
    if truth.action in POINTED and proposed.action == truth.action:
        target = element_at(elements, truth.coordinate)
        if target is None:
            return None
        hit = element_at(elements, proposed.coordinate)
        if hit is not None and not inside(proposed.coordinate, target) and _holds(hit, target):
            return None
        left, top, right, bottom = target.box
        box = (left, top, right - 1, bottom - 1)  # of an evaluator's box the edges belong to it
    if not strict(proposed, Truth(truth, frame, box)).step:
        return False
    return truth.action != "type" or _typed(proposed.text) == _typed(truth.text)


def distinct(rows: Iterable[Judged]) -> list[Judged]:
    """The rows, each judgement of one action in one view once (the first), in the order given."""
    return list({(r.view, r.action, r.level, r.label): r for r in reversed([*rows])}.values())[::-1]


def balanced(rows: Sequence[Judged], seed: int) -> list[Judged]:
    """As many good rows as bad ones at each level: the rows in the order given, then the less frequent
    kind again, over and over in an order drawn from the seed, as often as is missing. Each level by
    itself, since a reward model could else learn what to say to every claim of completion from the
    mere count. A level of one kind alone loses all its rows."""
    both, again = [], []
    for number, level in enumerate(get_args(Level)):
        good = [r for r in rows if r.level == level and r.label]
        bad = [r for r in rows if r.level == level and not r.label]
        few, many = sorted([bad, good], key=len)
        if few:
            both.append(level)
            order = np.random.default_rng([seed, _BALANCED, number]).permutation(len(few))
            again += [few[order[k % len(few)]] for k in range(len(many) - len(few))]
    return [r for r in rows if r.level in both] + again


def claims_completion(action: Action) -> bool:
    """Whether an action is a claim that the task is complete, which outcomes are judged by."""
    return action.action == "terminate" and action.status == "success"


def element_at(elements: Iterable[Element], point: tuple[int, int] | None) -> Element | None:
    """The smallest element under a point (the first of equals), None where there is none."""
    under = [element for element in elements if inside(point, element)]
    return min(under, key=lambda e: _area(e.box), default=None)


def _typed(text: str | None) -> str:
    return " ".join(unicodedata.normalize("NFC", text or "").split())


def folded(text: str) -> str:
    return _typed(text).casefold()


def inside(point: tuple[int, int] | None, element: Element) -> bool:
    left, top, right, bottom = element.box
    return point is not None and left <= point[0] < right and top <= point[1] < bottom


def _holds(outer: Element, inner: Element) -> bool:
    o, i = outer.box, inner.box
    return o[0] <= i[0] and o[1] <= i[1] and i[2] <= o[2] and i[3] <= o[3]


def _area(box: Sequence[int]) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])
