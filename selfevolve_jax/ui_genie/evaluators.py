"""AndroidControl's step evaluation under three named profiles, which are not interchangeable.

Published harnesses differ in what counts as the right action, so a number means nothing without its
profile: all three are always reported side by side. Common to them: the action types must be equal; a
swipe's direction is the finger's (a scroll's is the opposite: actions.finger_direction); a `wait` is
right by its type; and the faults of published evaluators are kept out. An empty text matches nothing
(as a substring it would match everything), a text that is no action is a wrong row and stays in the
denominator, and rows are paired by (episode, step), never by their order.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import FIELDS, Action, Failure, Frame, failures

UIGENIE_RADIUS = 0.14  # of the screen's diagonal
QWEN_RADIUS = 0.04  # of the screen, each axis by its own length
QWEN_BOX_SCALE = 1.2  # about the box's centre

Box = tuple[float, float, float, float]  # left, top, right, bottom; edges belong to it
Key = tuple[int | str, int]  # episode id, step index in the episode
POINTED = ("click", "long_press")  # the actions whose place is compared
_COMPARED = {"coordinate", "direction", "text", "button", "status"}


@dataclass(frozen=True)
class Truth:
    """What was done at a step. `action.coordinate` and `box` are in pixels of `frame`, which is the
    frame of the predictions; `screen` is the device's own size, in whose pixels distances are measured
    (None: the frame itself). `box` is the target's, None where it is not known.

    Of the fields only those that are compared must be there: a click's coordinate, a swipe's direction
    (AndroidControl gives its scrolls no coordinate), a text, a button, a status. UserError if one is
    missing or the box is inside out.
    """

    action: Action
    frame: Frame
    box: Box | None = None
    screen: Frame | None = None

    def __post_init__(self) -> None:
        name = self.action.action
        needed = {"direction"} if name == "swipe" else _COMPARED & set(FIELDS[name])
        for field in sorted(needed):
            if getattr(self.action, field) is None:
                raise UserError(
                    f"a ground-truth {name} has no {field}; fix: give it, or leave the row out"
                )
        if self.box is not None and (self.box[0] > self.box[2] or self.box[1] > self.box[3]):
            raise UserError(
                f"a target's box is {self.box}, inside out; fix: left, top, right, bottom"
            )


@dataclass(frozen=True)
class Score:
    """Verdicts on one prediction. `type`: the action's name is right. `grounding`: a click or long
    press of the right name is at the right place; None where the truth is neither. `step`: all that
    the profile compares is right."""

    type: bool
    grounding: bool | None
    step: bool


def uigenie(prediction: Action | Failure, truth: Truth) -> Score:
    """UI-Genie's own rules (Euphoria16/UI-Genie, src/ms-swift/eval_results_androidcontrol.py).

    A point within 14% of the screen's diagonal of the true one, the box unused; typed text and buttons
    equal to, part of, or around the true one, in lower case with spaces run together; an app's name and
    a status like that or with a token F1 above 0.5, over sets of words. One letter that occurs in the
    true text is thus right: that is how the paper's figures were counted. Not as there: an empty text
    is never right, and coordinates are scaled to the screen without being cut to whole pixels.
    """
    return _score(prediction, truth, _uigenie_point, _uigenie_fields)


def qwen(prediction: Action | Failure, truth: Truth) -> Score:
    """The rules by which Qwen2.5-VL's figures are remade in public (X-PLUG/MobileAgent,
    UI-S1/verl/utils/reward_score/gui_utils/utils.py).

    A point in the target's box made 1.2 times as wide and high, or at most 0.04 from the true point
    where both axes are fractions of the screen; text and app names equal to, part of, or around the
    true one, in lower case; buttons equal in lower case; `terminate` by its type alone, whatever its
    status. Not as there: an empty text is never right, and a scroll's left and right are turned into
    the finger's as up and down are.
    """
    return _score(prediction, truth, _qwen_point, _qwen_fields)


def strict(prediction: Action | Failure, truth: Truth) -> Score:
    """This project's own rules, the closest reading of "the same action".

    A point inside the target's box, or the very same point where no box is known; text and app names
    equal after Unicode's NFKC, case folding and running spaces together; direction, button and status
    equal. An empty text is never right.
    """
    return _score(prediction, truth, _strict_point, _strict_fields)


PROFILES: Mapping[str, Callable[[Action | Failure, Truth], Score]] = {
    "uigenie": uigenie,
    "qwen": qwen,
    "strict": strict,
}


def report(
    predictions: Iterable[tuple[Key, Action | Failure]], truths: Iterable[tuple[Key, Truth]]
) -> dict[str, Any]:
    """Everything that AndroidControl's tables show, under all profiles, ready for JSON.

    Every row of `truths` stays in the denominators. One without a prediction is wrong, and counted as
    `missing`: leaving hard rows out, or stopping early, must never raise a figure. A key given twice
    and a prediction of a row that is not in the truths are UserErrors, as nothing says what was meant
    (the wrong split, two runs in one file). No truth at all is a UserError.

    `rows`, `missing`; `failed`: unparsable predictions by kind; `without_box`: clicks and long presses
    whose target's box is not known; `predicted`: how often each action was predicted; `profiles`: for
    each `all` and `by_action` (by the truth's action), with `rows`, the rates `type`, `step`,
    `grounding` over `grounding_rows`, and `grounding_published` over `grounding_published_rows`: only
    rows whose prediction is a click or long press too, as in UI-Genie's evaluator (which asks for a
    coordinate, and its AndroidControl swipes had none). None where there is no such row. `episode`: the
    share of the `episodes` with every step right.
    """
    true, predicted = _by_key(truths, "ground truth"), _by_key(predictions, "prediction")
    if not true:
        raise UserError("there is no ground truth to evaluate against; fix: a split with episodes")
    strange = sorted(predicted.keys() - true.keys(), key=str)
    if strange:
        raise UserError(
            f"{len(strange)} predictions are of steps that the ground truth has not, the first "
            f"{strange[0]}; fix: predict the split that is evaluated"
        )
    absent = Failure("no_tool_call", "no prediction")
    given = list(predicted.values())
    return {
        "rows": len(true),
        "missing": len(true) - len(given),
        "failed": failures(given),
        "without_box": sum(_grounded(truth) and truth.box is None for truth in true.values()),
        "predicted": dict(Counter(p.action for p in given if isinstance(p, Action)).most_common()),
        "profiles": {
            name: _profile(
                [
                    (
                        key,
                        predicted.get(key, absent),
                        truth,
                        rule(predicted.get(key, absent), truth),
                    )
                    for key, truth in true.items()
                ]
            )
            for name, rule in PROFILES.items()
        },
    }


def table(reported: Mapping[str, Any]) -> str:
    """A report as a Markdown table: a line for all rows and for each action, and for each profile
    type / grounding / step in percent, with a dash where there is nothing to count."""
    profiles = reported["profiles"]
    lines = [
        "| truth | rows | " + " | ".join(f"{name} type/grounding/step" for name in profiles) + " |",
        "|---" * (2 + len(profiles)) + "|",
    ]
    actions = next(iter(profiles.values()))["by_action"]
    for label in ("all", *actions):
        tallies = [p["all"] if label == "all" else p["by_action"][label] for p in profiles.values()]
        cells = [
            "/".join(
                "–" if tally[of] is None else f"{100 * tally[of]:.1f}"
                for of in ("type", "grounding", "step")
            )
            for tally in tallies
        ]
        lines.append(f"| {label} | {tallies[0]['rows']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_Scored = tuple[Key, Action | Failure, Truth, Score]


def _profile(scored: Sequence[_Scored]) -> dict[str, Any]:
    by_action: dict[str, list[_Scored]] = defaultdict(list)
    episodes: dict[int | str, bool] = {}
    for row in scored:
        (episode, _), _, truth, score = row
        by_action[truth.action.action].append(row)
        episodes[episode] = episodes.get(episode, True) and score.step
    return {
        "all": _tally(scored),
        "by_action": {name: _tally(by_action[name]) for name in FIELDS if name in by_action},
        "episode": _share(list(episodes.values())),
        "episodes": len(episodes),
    }


def _tally(scored: Sequence[_Scored]) -> dict[str, Any]:
    grounding = [s.grounding for _, _, _, s in scored if s.grounding is not None]
    published = [
        s.grounding
        for _, prediction, _, s in scored
        if s.grounding is not None
        and isinstance(prediction, Action)
        and prediction.action in POINTED
    ]
    return {
        "rows": len(scored),
        "type": _share([s.type for _, _, _, s in scored]),
        "step": _share([s.step for _, _, _, s in scored]),
        "grounding": _share(grounding),
        "grounding_rows": len(grounding),
        "grounding_published": _share(published),
        "grounding_published_rows": len(published),
    }


def _share(verdicts: Sequence[bool]) -> float | None:
    return sum(verdicts) / len(verdicts) if verdicts else None


def _by_key(pairs: Iterable[tuple[Key, Any]], what: str) -> dict[Key, Any]:
    found: dict[Key, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(
                f"there are two {what}s for episode {key[0]}, step {key[1]}; fix: one for each step"
            )
        found[key] = value
    return found


def _grounded(truth: Truth) -> bool:
    """Whether a profile compares this step's place: a swipe may have a point, which none compares."""
    return truth.action.action in POINTED


_Point = Callable[[tuple[int, int], Truth], bool]
_Fields = Callable[[Action, Action], bool]


def _score(prediction: Action | Failure, truth: Truth, point: _Point, fields: _Fields) -> Score:
    """`point` and `fields` are asked only about predictions of the true type."""
    grounded = _grounded(truth)
    if isinstance(prediction, Failure) or prediction.action != truth.action.action:
        return Score(type=False, grounding=False if grounded else None, step=False)
    if grounded:
        right = prediction.coordinate is not None and point(prediction.coordinate, truth)
        return Score(type=True, grounding=right, step=right)
    return Score(type=True, grounding=None, step=fields(prediction, truth.action))


def _uigenie_fields(given: Action, true: Action) -> bool:
    match true.action:
        case "open":
            return _either_way(given.text, true.text) or _token_f1(given.text, true.text) > 0.5
        case "type":
            return _either_way(given.text, true.text)
        case "system_button":
            return _either_way(given.button, true.button)
        case "terminate":
            return _either_way(given.status, true.status) or (
                _token_f1(given.status, true.status) > 0.5
            )
        case "swipe":
            return given.direction == true.direction
    return True  # wait


def _qwen_fields(given: Action, true: Action) -> bool:
    match true.action:
        case "open" | "type":
            return _either_way(given.text, true.text)
        case "system_button":
            return _lower(given.button) == _lower(true.button)
        case "swipe":
            return given.direction == true.direction
    return True  # wait, terminate


def _strict_fields(given: Action, true: Action) -> bool:
    match true.action:
        case "open" | "type":
            return bool(_folded(given.text)) and _folded(given.text) == _folded(true.text)
        case "system_button":
            return given.button == true.button
        case "swipe":
            return given.direction == true.direction
        case "terminate":
            return given.status == true.status
    return True  # wait


def _true_point(truth: Truth) -> tuple[int, int]:
    assert truth.action.coordinate is not None  # Truth refuses a click or long press without one
    return truth.action.coordinate


def _off(point: tuple[int, int], truth: Truth, unit: tuple[int, int]) -> float:
    """The distance from the true point where the frame, and so the screen, is `unit` wide and high."""
    x, y = _true_point(truth)
    dx = (point[0] - x) * unit[0] / truth.frame.width
    return math.hypot(dx, (point[1] - y) * unit[1] / truth.frame.height)


def _uigenie_point(point: tuple[int, int], truth: Truth) -> bool:
    screen = truth.screen or truth.frame
    size = (screen.width, screen.height)
    return _off(point, truth, size) <= UIGENIE_RADIUS * math.hypot(*size)


def _qwen_point(point: tuple[int, int], truth: Truth) -> bool:
    return _inside(point, truth.box, QWEN_BOX_SCALE) or _off(point, truth, (1, 1)) <= QWEN_RADIUS


def _strict_point(point: tuple[int, int], truth: Truth) -> bool:
    return point == _true_point(truth) if truth.box is None else _inside(point, truth.box)


def _inside(point: tuple[int, int], box: Box | None, scale: float = 1.0) -> bool:
    if box is None:
        return False
    left, top, right, bottom = box
    grow_x, grow_y = (right - left) * (scale - 1) / 2, (bottom - top) * (scale - 1) / 2
    return (
        left - grow_x <= point[0] <= right + grow_x and top - grow_y <= point[1] <= bottom + grow_y
    )


def _lower(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip().lower()


def _folded(text: str | None) -> str:
    return " ".join(unicodedata.normalize("NFKC", text or "").casefold().split())


def _either_way(given: str | None, true: str | None) -> bool:
    """Whether one is part of the other, in lower case. An empty one is part of nothing."""
    a, b = _lower(given), _lower(true)
    return bool(a and b) and (a in b or b in a)


def _token_f1(given: str | None, true: str | None) -> float:
    """2·|common| / (|given| + |true|) over the sets of lower-case words: the harmonic mean of precision
    and recall. 0 where either is empty."""
    a, b = set(_lower(given).split()), set(_lower(true).split())
    return 2 * len(a & b) / (len(a) + len(b)) if a and b else 0.0
