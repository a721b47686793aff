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
    assert asked[:2] == [("click Submit", (), SUBMIT), ("click input", (), INPUT)]
    assert [goal for goal, _, _ in asked[2:]] == [
        f"type {action.text}" for _, _, action in asked[2:]
    ]
    assert len(asked) == 5


def test_a_hard_goal_has_the_name_in_quotes_or_the_words_themselves():
    seen, steps = set(), set()
    for seed in range(50):
        for goal, before, action in exercises.to_write(
            VIEW, np.random.default_rng(seed), hard=True
        ):
            name = action.action_desc.split(" ", 1)[1]
            assert goal == action.action_desc or f' "{name}" ' in f" {goal} "
            assert action.action_desc not in before and len(set(before)) == len(before)
            seen.add(goal == action.action_desc)
            steps.add(len(before))
    assert seen == {True, False} and steps == {0, 1, 2}


def found(hard, view=VIEW, seeds=200):
    for seed in range(seeds):
        yield from exercises.to_judge(view, np.random.default_rng(seed), hard)


def says(goal, desc, kinds=None):
    """Whether a goal asks for what a step did: it holds its name, in quotes or not, or its kind."""
    name = desc.split(" ", 1)[1]
    goal = f" {goal} ".replace('"', " ")
    return f" {name} " in goal or (kinds or {}).get(desc, name) in goal.split()


@pytest.mark.parametrize("hard", [False, True])
def test_right_is_what_does_what_the_goal_says(hard):
    """The name is in the goal of all that is right and of nothing that is wrong, but where the right
    words stand at another's place."""
    places = {"click Submit": SUBMIT.coordinate, "click input": INPUT.coordinate}
    kinds = {"click Submit": "button", "click input": "input"} if hard else {}
    verdicts, wrong_places, by_kind, after = set(), 0, 0, set()
    for (goal, steps, action), right in found(hard):
        ended = action == contract.COMPLETED
        did = steps[-1] if ended else action.action_desc
        # The words about a name are any, and a kind may be among them.
        if not right and not says(goal, did):
            verdicts.add((ended, right))
            continue
        by_kind += right and not says(goal, did)
        asked_for = says(goal, did, kinds)
        elsewhere = not ended and action.coordinate != places.get(did)
        assert right == (asked_for and not elsewhere), (goal, steps, action)
        wrong_places += asked_for and elsewhere
        verdicts.add((ended, right))
        after.add(len(steps) - ended)
    assert (wrong_places > 0) == (by_kind > 0) == hard
    assert after == ({0, 1, 2} if hard else {0})
    assert verdicts == {(ended, right) for ended in (True, False) for right in (True, False)}


def test_judged_goals_hold_the_name_at_any_distance():
    """No fixed place of the goal tells right from wrong: a base that compares at one distance fails."""
    at = {
        goal.split().index("Submit") for (goal, _, _), _ in found(False) if "Submit" in goal.split()
    }
    assert len(at) >= 5


def test_a_kind_that_two_have_names_neither():
    twice = Element("button", "Cancel", (104, 85, 150, 118))
    view = View("", (), VIEW.screenshots, VIEW.frame, (*ELEMENTS, twice))
    for (goal, steps, action), right in found(True, view):
        did = steps[-1] if action == contract.COMPLETED else action.action_desc
        if right and did in ("click Submit", "click Cancel"):
            assert says(goal, did)


def test_some_hard_screens_have_names_that_differ_in_the_last_word():
    def alike(view):
        names = [element.text for element in view.elements if element.text]
        return len(names) > 1 and len({name.rsplit(" ", 1)[0] for name in names}) == 1

    rng = np.random.default_rng(0)
    assert 10 < sum(alike(exercises.drawn_screen(rng, True)) for _ in range(100)) < 60
    assert not any(alike(exercises.drawn_screen(rng, False)) for _ in range(100))


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
