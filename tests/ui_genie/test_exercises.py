"""The exercises of the tiny base say what they should: what is asked can be done, and what is called
right is."""

import numpy as np
import pytest

from selfevolve_jax.images import load_image
from selfevolve_jax.ui_genie import contract, exercises
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.contract import View
from selfevolve_jax.ui_genie.environment import Element
from tests import seeing

ELEMENTS = (
    Element("button", "Submit", (2, 85, 102, 118)),
    Element("input", "", (10, 10, 50, 30), focused=True),
    Element("link", "a", (0, 40, 10, 50)),
    Element("link", "a", (0, 60, 10, 70)),
)
VIEW = View("", ("click Zoe", "click input"), (seeing.png(160, 210, 0),), Frame(160, 210), ELEMENTS)
SUBMIT = Action("click", "click Submit", (56, 104))
INPUT = Action("click", "click input", (32, 24))


def test_things_with_a_name_of_their_own_are_pressed_and_texts_typed():
    asked = exercises.to_write(VIEW, np.random.default_rng(0), hard=False)
    assert asked[:2] == [("click Submit", SUBMIT), ("click input", INPUT)]
    assert [goal for goal, _ in asked[2:]] == [f"type {action.text}" for _, action in asked[2:]]
    assert len(asked) == 5


def test_a_hard_goal_has_the_name_in_quotes_or_the_words_themselves():
    seen = set()
    for seed in range(20):
        for goal, action in exercises.to_write(VIEW, np.random.default_rng(seed), hard=True):
            name = action.action_desc.split(" ", 1)[1]
            assert goal == action.action_desc or f' "{name}" ' in goal
            seen.add(goal == action.action_desc)
    assert seen == {True, False}


def found(hard, seeds=50):
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        asked = exercises.to_write(VIEW, rng, False)
        yield from exercises.to_judge(VIEW, asked, rng, hard)


@pytest.mark.parametrize("hard", [False, True])
def test_right_is_what_does_what_the_goal_says(hard):
    places = {"click Submit": SUBMIT.coordinate, "click input": INPUT.coordinate}
    verdicts, wrong_places = set(), 0
    for goal, action, right in found(hard):
        if action == contract.COMPLETED:
            # Of the two steps it is the last that counts.
            assert right == (goal == "click input" or ' "input" ' in goal)
            verdicts.add(("done", right))
            continue
        same_words, place = goal == action.action_desc, places.get(action.action_desc)
        assert right == (same_words and action.coordinate == place)
        wrong_places += same_words and action.coordinate != place
        verdicts.add(("step", right))
    assert (wrong_places > 0) == hard
    kinds = ("step", "done") if hard else ("step",)
    assert verdicts == {(kind, right) for kind in kinds for right in (True, False)}


def test_a_made_up_screen_is_what_its_picture_shows():
    """Every thing lies on the frame, at most one has the focus, the picture is not blank where a thing
    is, and no two screens are alike."""
    rng = np.random.default_rng(0)
    views = [exercises.drawn_screen(rng, hard=n % 2 == 1) for n in range(20)]
    assert len({view.screenshots for view in views}) == 20
    for view in views:
        shown = np.asarray(load_image(view.screenshots[0]))
        assert shown.shape == (210, 160, 3) and 1 <= len(view.elements) <= 8
        assert sum(element.focused for element in view.elements) <= 1
        for element in view.elements:
            left, top, right, bottom = element.box
            assert 0 <= left < right <= 160 and 0 <= top < bottom <= 210
            assert (shown[top:bottom, left:right] != 255).any()
