"""What the quickstart's tiny base learns to look and to compare with: exercises on any screen, and
made-up screens to do them on.

The easy ones come first: told to click a thing by its name, to do so. Before this is learnt (some 100
steps) the hard ones only hinder. What is judged is told in any words from the start: where a goal is
the action's own words, a base learns to compare what stands at one distance, and nothing else.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from selfevolve_jax.images import png
from selfevolve_jax.ui_genie import contract, demos
from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.contract import View
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.miniwob import FRAME

_KINDS = ("button", "link", "text", "radio", "checkbox", "input", "tab")
# Shares: of what could be judged, and of that, where the question is whether the task is done, not
# whether a step is right; of hard exercises that come after other steps; of the only things of their
# kind that are asked for by it; of hard screens whose things have names that begin alike.
_JUDGED, _ENDS, _AFTER, _BY_KIND, _ALIKE = 0.6, 0.5, 0.15, 0.3, 0.3

# (goal, steps so far, action)
Written = tuple[str, tuple[str, ...], Action]


@cache
def words() -> list[str]:
    """words.txt: names, filler and labels of the demonstrated tasks' pages, in order.
    tests/ui_genie/make_words.py makes it."""
    return Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()


def to_write(view: View, rng: np.random.Generator, hard: bool) -> list[Written]:
    """A click on each thing that has a name of its own on the screen, and where a field has the focus,
    words to type. Goals are the action's own words; hard ones may be its thing's name in quotes among
    any other words, and may come after other steps."""
    actions = _doable(view, rng)
    found = []
    for action in actions:
        own = not hard or rng.random() < 0.4
        goal = action.action_desc if own else _among(f'"{_object(action)}"', rng)
        found.append((goal, _steps_before(action, actions, rng) if hard else (), action))
    return found


def to_judge(view: View, rng: np.random.Generator, hard: bool) -> list[tuple[Written, bool]]:
    """Exercises, and whether the action is right: what the goal says, or in half of them something
    else. COMPLETED is right where the last step so far did what the goal says. Goals hold the name
    among any words. Hard: of the only thing of its kind, the kind; after other steps; and with the
    right words at another's place."""
    actions = _doable(view, rng)
    kinds = Counter(element.kind for element in view.elements)
    only = {demos.click_named(e).action_desc: e.kind for e in view.elements if kinds[e.kind] == 1}
    found = []
    for action in actions:
        if rng.random() > _JUDGED:
            continue
        kind = only.get(action.action_desc) if hard and rng.random() < _BY_KIND else None
        goal = _told(action, rng) if kind is None else _among(kind, rng)
        steps = _steps_before(action, actions, rng) if hard else ()
        did, right = action, rng.random() < 0.5
        if not right:
            said = f" {goal} ".replace('"', " ")
            others = [a for a in actions if a is not action and f" {_object(a)} " not in said]
            if not others:
                continue
            did = others[int(rng.integers(len(others)))]
        if rng.random() < _ENDS:
            found.append(((goal, (*steps, did.action_desc), contract.COMPLETED), right))
            continue
        if hard and not right and rng.random() < 0.2 and did.coordinate and action.coordinate:
            did = replace(action, coordinate=did.coordinate)
        found.append(((goal, steps, did), right))
    return found


def _doable(view: View, rng: np.random.Generator) -> list[Action]:
    presses = [(element, demos.click_named(element)) for element in view.elements]
    named = Counter(action.action_desc for _, action in presses)
    found = [
        action
        for element, action in presses
        if named[action.action_desc] == 1 and view.frame.holds(element.place)
    ]
    if any(element.focused for element in view.elements):
        found += [demos.type_text(_random_text(rng)) for _ in range(3)]
    return found


def _steps_before(
    but: Action, actions: Sequence[Action], rng: np.random.Generator
) -> tuple[str, ...]:
    """Mostly none; else one or two others of the actions."""
    others = [a.action_desc for a in actions if a.action_desc != but.action_desc]
    if not others or rng.random() > _AFTER:
        return ()
    count = min(int(rng.integers(1, 3)), len(others))
    return tuple(str(one) for one in rng.choice(others, size=count, replace=False))


def drawn_screen(rng: np.random.Generator, hard: bool) -> View:
    """A screen of random things with random names at random places, and a picture of them; on some of
    the hard ones names differ in the last word alone."""
    image = Image.new("RGB", (FRAME.width, FRAME.height), "white")
    pen = ImageDraw.Draw(image)
    found, top = [], int(rng.integers(50, 80))
    alike = _random_text(rng) if hard and rng.random() < _ALIKE else None
    numbered = rng.random() < 0.5
    while top < 195 and len(found) < 8:
        left, high = int(rng.integers(2, 70)), int(rng.integers(10, 32))
        kind = str(rng.choice(_KINDS))
        text = "" if kind == "input" and rng.random() < 0.7 else _random_text(rng)
        if alike is not None and text:
            text = f"{alike} #{len(found)}" if numbered else f"{alike} {rng.choice(words())}"
        box = (left, top, left + int(rng.integers(20, 90)), min(top + high, FRAME.height))
        checked = bool(rng.random() < 0.3) if kind in ("radio", "checkbox") else None
        focused = kind == "input" and rng.random() < 0.5 and not any(e.focused for e in found)
        found.append(Element(kind, text, box, focused, checked))
        pen.rectangle(box, outline="blue" if focused else "grey", fill="black" if checked else None)
        pen.text((left + 2, top), text, fill="black")
        # Some things stand side by side.
        top += high + int(rng.integers(1, 20)) if rng.random() < 0.8 else int(rng.integers(0, 4))
    return View("", (), (png(image),), FRAME, tuple(found))


def _told(action: Action, rng: np.random.Generator) -> str:
    """A goal that says what is to be judged."""
    if rng.random() < 0.15:
        return action.action_desc
    name = _object(action)
    return _among(name if rng.random() < 0.6 else f'"{name}"', rng)


def _object(action: Action) -> str:
    return action.action_desc.split(" ", 1)[1]


def _among(text: str, rng: np.random.Generator) -> str:
    before, after = (" ".join(rng.choice(words(), size=rng.integers(5))) for _ in range(2))
    return f"{before} {text} {after}".strip()


def _random_text(rng: np.random.Generator) -> str:
    if rng.random() < 0.1:
        letters = string.ascii_letters + string.digits
        return "".join(rng.choice(list(letters), size=rng.integers(1, 8)))
    return " ".join(rng.choice(words(), size=rng.choice((1, 1, 1, 1, 2))))
