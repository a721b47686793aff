"""What the quickstart's tiny base learns to look and to compare with: exercises on any screen, and
made-up screens to do them on.

The easy ones come first: told to click a thing by its name, to do so, and to say of such a click
whether it is what was told. Before these are learnt (some 100 steps) the hard ones only hinder: all
kinds mixed from the start leave a judge at 7 of 10 after 400 steps, where this order leaves it at 9.
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


@cache
def words() -> list[str]:
    """words.txt: names, filler and labels of the demonstrated tasks' pages, in order.
    tests/ui_genie/make_words.py makes it."""
    return Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()


def to_write(view: View, rng: np.random.Generator, hard: bool) -> list[tuple[str, Action]]:
    """(goal, action): a click on each thing that has a name of its own on the screen, and where a field
    has the focus, words to type. Goals are the action's own words; hard ones may be its thing's name
    in quotes among any other words."""
    presses = [(element, demos.click_named(element)) for element in view.elements]
    named = Counter(action.action_desc for _, action in presses)
    found = [
        action
        for element, action in presses
        if named[action.action_desc] == 1 and view.frame.holds(element.place)
    ]
    if any(element.focused for element in view.elements):
        found += [demos.type_text(_random_text(rng)) for _ in range(3)]
    return [(_goal(action.action_desc, rng, hard), action) for action in found]


def to_judge(
    view: View, asked: Sequence[tuple[str, Action]], rng: np.random.Generator, hard: bool
) -> list[tuple[str, Action, bool]]:
    """(goal, action, whether it is right): of `to_write`, half with their own action and half with
    another's. Hard: with the right words at another's place too, and whether the task is done, which it
    is where the last step did what the goal says."""
    found = []
    for goal, action in asked:
        _, other = asked[int(rng.integers(len(asked)))]
        if rng.random() < 0.5:
            found.append((goal, action, True))
        elif other.action_desc != action.action_desc:
            if hard and rng.random() < 0.2 and other.coordinate and action.coordinate:
                other = replace(action, coordinate=other.coordinate)
            found.append((goal, other, False))
    if hard and view.history:
        last = view.history[-1]
        found.append((_goal(last, rng, hard), contract.COMPLETED, True))
        for goal, action in asked[:2]:
            found.append((goal, contract.COMPLETED, action.action_desc == last))
    return found


def drawn_screen(rng: np.random.Generator, hard: bool) -> View:
    """A screen of random things with random names at random places, and a picture of them; of the hard
    ones some come after a step or two."""
    image = Image.new("RGB", (FRAME.width, FRAME.height), "white")
    pen = ImageDraw.Draw(image)
    found, top = [], int(rng.integers(50, 80))
    while top < 195 and len(found) < 8:
        left, high = int(rng.integers(2, 70)), int(rng.integers(10, 32))
        kind = str(rng.choice(_KINDS))
        text = "" if kind == "input" and rng.random() < 0.7 else _random_text(rng)
        box = (left, top, left + int(rng.integers(20, 90)), min(top + high, FRAME.height))
        checked = bool(rng.random() < 0.3) if kind in ("radio", "checkbox") else None
        focused = kind == "input" and rng.random() < 0.5 and not any(e.focused for e in found)
        found.append(Element(kind, text, box, focused, checked))
        pen.rectangle(box, outline="blue" if focused else "grey", fill="black" if checked else None)
        pen.text((left + 2, top), text, fill="black")
        # Some things stand side by side.
        top += high + int(rng.integers(1, 20)) if rng.random() < 0.8 else int(rng.integers(0, 4))
    history: tuple[str, ...] = ()
    if hard and rng.random() < 0.6:
        pressed = found[int(rng.integers(len(found)))]
        history = (demos.click_named(pressed).action_desc,)
        if rng.random() < 0.3:
            history = (f"click {_random_text(rng)}", *history)
    return View("", history, (png(image),), FRAME, tuple(found))


def _goal(desc: str, rng: np.random.Generator, hard: bool) -> str:
    if not hard or rng.random() < 0.5:
        return desc
    before, after = (" ".join(rng.choice(words(), size=rng.integers(5))) for _ in range(2))
    return f'{before} "{desc.split(" ", 1)[1]}" {after}'


def _random_text(rng: np.random.Generator) -> str:
    if rng.random() < 0.1:
        letters = string.ascii_letters + string.digits
        return "".join(rng.choice(list(letters), size=rng.integers(1, 8)))
    return " ".join(rng.choice(words(), size=rng.choice((1, 1, 1, 1, 2))))
