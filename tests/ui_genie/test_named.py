"""What was hit, worked out by hand on a screen of a box with a label in it, and a field."""

import pytest

from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.named import deeds, named, settled
from selfevolve_jax.ui_genie.trajectory import Step

SCREEN = (
    Element("button", "Say Ok", (0, 0, 40, 20)),
    Element("text", "Ok", (2, 4, 14, 16)),  # in the button
    Element("input", "", (0, 40, 40, 60)),
)


def press(x, y, desc, action="click"):
    return Action(action, desc, coordinate=(x, y))


@pytest.mark.parametrize(
    "action, words",
    [
        (press(1, 1, "click Cancel"), "click Say Ok"),
        (press(12, 8, "click Say Ok"), "click Ok"),  # the smallest under it
        (press(12, 8, "click ok"), "click Ok"),
        (press(12, 8, "check Ok"), "check Ok"),  # the name is right, the verb the agent's
        (press(12, 8, "click Ok now"), "click Ok"),
        (press(12, 8, ""), "click Ok"),
        (press(5, 50, "click the field"), "click input"),  # it shows nothing
        (press(80, 80, "click Ok"), "click nothing"),
        (press(1, 1, "hold it", "long_press"), "long press Say Ok"),
        (Action("type", "type Ann", text="Anne"), "type Anne"),
        (Action("type", "write Anne", text="Anne"), "write Anne"),
        (Action("terminate", "done", status="success"), "done"),
        (Action("wait", "click Ok", time=1), "click Ok"),
    ],
)
def test_words_say_what_was_hit(action, words):
    found = named(action, SCREEN)
    assert found.action_desc == words
    # the words alone: what is done stays, and words that are right stay right
    assert deeds([step(found)], False) == deeds([step(action)], False)
    assert named(found, SCREEN) == found


def step(action):
    return Step("0" * 16 + ".png", SCREEN, "", action)


def test_what_is_learnt_is_pressed_where_the_list_has_it():
    done = Action("terminate", "done", status="success")
    steps = [
        step(press(1, 1, "click Say Ok")),
        step(press(80, 80, "click nothing")),
        step(None),
        step(press(39, 59, "click input")),
        step(done),
    ]
    found = settled(steps)
    # the centres (20, 10) and (20, 50), each at the nearest multiples of 8 in its box
    places = [one.action and one.action.coordinate for one in found]
    assert places == [(24, 8), None, (24, 48), None]
    assert [one.action for one in found][1::2] == [None, done]
    assert [one.text for one in found] == [one.text for one in steps if one is not steps[1]]


def test_presses_of_one_thing_are_the_same_where_things_have_names():
    corner, middle, missed = press(1, 1, "one"), press(35, 18, "other"), press(80, 80, "a miss")
    label = press(12, 8, "label")
    assert deeds([step(corner)], True) == deeds([step(missed), step(middle)], True)
    assert deeds([step(corner)], True) != deeds([step(label)], True)
    assert deeds([step(corner)], False) != deeds([step(middle)], False)
