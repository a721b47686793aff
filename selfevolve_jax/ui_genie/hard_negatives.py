"""Wrong actions that the present reward model takes for good ones (UI-Genie, arXiv 2505.21496: actions
on elements that have nothing to do with the target, kept where the model scores them positive).

Agents err in more ways than that, and a model that was never shown a way calls it good. So each true
step also gives the true words at a wrong place, a place where nothing is, and other words to type.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from selfevolve_jax.ui_genie import actions
from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import GRID, Element
from selfevolve_jax.ui_genie.evaluators import POINTED
from selfevolve_jax.ui_genie.named import named
from selfevolve_jax.ui_genie.reward_data import (
    By,
    Judged,
    element_at,
    folded,
    inside,
    row,
)
from selfevolve_jax.ui_genie.trajectory import Trajectory

MINED_ABOVE = 0.5  # P(positive): there the present model says "good"
_PURPOSE = 61  # of the draws
_TRIES = 8  # to find a place where nothing is


def hard_negatives(
    successes: Sequence[Trajectory],
    by: By,
    score: Callable[
        [Sequence[tuple[Trajectory, int, Sequence[Action]]]], Sequence[Sequence[float]]
    ],
    per_step: int,
    seed: int,
    by_name: bool = False,
) -> tuple[list[Judged], Counter[str]]:
    """Rows for what is wrong at the steps of these successes (by: by whose word) by construction, and
    yet scored above MINED_ABOVE:

    - in place of a click or a long press, one on an unrelated element (`unrelated`), half of the time
      in that element's words, half in the true ones; and the true words where no element is;
    - in place of what is typed, another text that is typed in these trajectories or stands on the
      screen, and that no step of the same one types.

    score: the present model's P(positive) of each action in the view before (trajectory, step); one
    call. per_step: at most so many elements, or texts, a step; drawn from `seed`. by_name: what is
    said of an action is what it hits (named.named), whatever is said above.

    Returns the rows and counts: "proposed", "kept".
    """
    asked: list[tuple[Trajectory, int, list[Action]]] = []
    typed = _typed_in(successes)
    for n, of in enumerate(successes):
        for i, step in enumerate(of.steps):
            rng = np.random.default_rng([seed, _PURPOSE, n, i])
            made: list[Action] = []
            if step.action is not None and step.action.action in POINTED:
                made = _misplaced(of, i, step.action, per_step, rng)
            elif step.action is not None and step.action.action == "type":
                made = _mistyped(of, i, step.action, typed, per_step, rng)
            if by_name:
                made = [named(action, step.elements) for action in made]
            if made:
                asked.append((of, i, made))
    rows: list[Judged] = []
    counts = Counter(proposed=sum(len(made) for _, _, made in asked), kept=0)
    for (of, i, made), scores in zip(asked, score(asked) if asked else [], strict=True):
        for proposed, value in zip(made, scores, strict=True):
            if value > MINED_ABOVE:
                truth = of.steps[i].action
                assert truth is not None
                told = {"score": float(value), "truth": actions.as_record(truth), "success_by": by}
                rows.append(
                    row(of, i, proposed, False, "hard_negative", "construction", "step", told)
                )
    counts["kept"] = len(rows)
    return rows, counts


def on_others(
    of: Trajectory, i: int, truth: Action, at_most: int, rng: np.random.Generator
) -> list[Action]:
    """A click or long press of step i on unrelated elements instead, so many drawn. None where it hits
    no element of the list."""
    target = element_at(of.steps[i].elements, truth.coordinate)
    if target is None:
        return []
    others = unrelated(of, i, target)
    drawn = rng.permutation(len(others))[:at_most]
    return [on_another(truth, target, others[k], rng) for k in drawn]


def on_another(truth: Action, target: Element, other: Element, rng: np.random.Generator) -> Action:
    """The true action on another element: half of the time in the words of that one, as an agent that
    means the wrong thing, and half in those of what was meant, as one that misses."""
    words = truth.action_desc
    if rng.random() < 0.5:
        words = _renamed(truth, target, other)
    return dataclasses.replace(truth, coordinate=other.place, action_desc=words)


def unrelated(of: Trajectory, i: int, target: Element) -> list[Element]:
    """The elements on the screen before step i that may not be acted on instead: on the list, not
    overlapping the target, of another name, and not what another step of the same trajectory acts on,
    by place or by name (the order of two clicks is often free, so that a later target may be right
    now). Elements without a name are not namesakes: of two empty fields one is wrong."""
    names, points = {folded(target.text)}, []
    for step in of.steps:
        if step.action is not None and step.action.coordinate is not None:
            points.append(step.action.coordinate)
            element = element_at(step.elements, step.action.coordinate)
            names |= set() if element is None else {folded(element.text)}
    return [
        other
        for other in of.steps[i].elements
        if inside(other.place, other)
        and of.frame.holds(other.place)
        and not _overlap(other.box, target.box)
        and folded(other.text) not in names - {""}
        and not any(inside(point, other) for point in points)
    ]


def _misplaced(
    of: Trajectory, i: int, truth: Action, per_step: int, rng: np.random.Generator
) -> list[Action]:
    elements = of.steps[i].elements
    if element_at(elements, truth.coordinate) is None:
        return []
    made = on_others(of, i, truth, per_step, rng)
    columns, lines = -(-of.frame.width // GRID), -(-of.frame.height // GRID)
    for _ in range(_TRIES):
        place = GRID * int(rng.integers(columns)), GRID * int(rng.integers(lines))
        if element_at(elements, place) is None:
            return [*made, dataclasses.replace(truth, coordinate=place)]
    return made


def _typed_in(trajectories: Sequence[Trajectory]) -> list[str]:
    """What is typed, each text once, in their order."""
    acts = (step.action for of in trajectories for step in of.steps)
    return list(dict.fromkeys(a.text for a in acts if a and a.action == "type" and a.text))


def _mistyped(
    of: Trajectory,
    i: int,
    truth: Action,
    typed: Sequence[str],
    per_step: int,
    rng: np.random.Generator,
) -> list[Action]:
    own = {folded(text) for text in _typed_in([of])}
    there = [element.text for element in of.steps[i].elements]
    texts = [t for t in dict.fromkeys([*typed, *there]) if folded(t) not in own | {""}]
    drawn = [texts[k] for k in rng.permutation(len(texts))[:per_step]]
    return [
        dataclasses.replace(
            truth, text=text, action_desc=_with(truth.action_desc, truth.text, text)
        )
        for text in drawn
    ]


def _renamed(truth: Action, target: Element, other: Element) -> str:
    """The true action's words with what the other element shows in place of the target's; what shows
    nothing is called by its kind."""
    name, instead = target.name, other.name
    if name in truth.action_desc:
        return _with(truth.action_desc, name, instead)
    verb = truth.action.replace("_", " ")
    # In the case of the true words, which else would tell the two apart.
    return f"{verb if truth.action_desc.startswith(verb) else verb.capitalize()} {instead}"


def _with(words: str, name: str | None, instead: str) -> str:
    """Words with another name in place of the last that they say: `c` is in `click c` twice."""
    if not name or name not in words:
        return words
    before, _, after = words.rpartition(name)
    return f"{before}{instead}{after}"


def _overlap(a: Sequence[int], b: Sequence[int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
