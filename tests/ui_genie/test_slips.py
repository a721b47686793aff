"""Slips: by hand which are played from a success, and what is said of where they end."""

import dataclasses
from collections import Counter

import pytest

from selfevolve_jax.ui_genie import slips
from selfevolve_jax.ui_genie.actions import render
from selfevolve_jax.ui_genie.contract import COMPLETED
from selfevolve_jax.ui_genie.corruption import corruption_rows
from selfevolve_jax.ui_genie.environment import Broken, Observation, State
from selfevolve_jax.ui_genie.explore import Exploration, explore
from selfevolve_jax.ui_genie.reward_data import element_at
from selfevolve_jax.ui_genie.trajectory import names
from tests.ui_genie.episodes import (
    CANCEL,
    ELEMENTS,
    FRAME,
    HELP,
    OK,
    click,
    name,
    picture,
    terminate,
)

PRESS = {
    "o": click("Click OK", OK.place),
    "h": click("Click Help", HELP.place),
    "c": click("Click Cancel", CANCEL.place),
}


class Page:
    """Shows which of its three buttons were pressed, in order; over after two, won by OK and Help."""

    def __init__(self, broken=(), forgives=False, ends=2):
        self.broken, self.forgives, self.ends, self.calls = broken, forgives, ends, 0

    def observe(self, states):
        self.calls += 1
        return [self._seen(state) for state in states]

    def _seen(self, state):
        hits = [element_at(ELEMENTS, a.coordinate) for a in state.actions if a.coordinate]
        pressed = "".join(hit.text[0].lower() for hit in hits if hit)[: self.ends]
        if pressed in self.broken:
            return Broken("lost")
        done = len(pressed) == self.ends
        shown = "oh" if self.forgives and done else pressed
        won = float(done and shown == "oh")
        return Observation("Press OK, then Help", picture(shown), FRAME, ELEMENTS, done, won)


def success(actions="oh", closing=()):
    state = State("press", 3, (*(PRESS[a] for a in actions), *closing))
    found = explore([state], Page(), None, None, Exploration("greedy", max_steps=1), 0)
    return found.trajectories[0]


def slipped(page=None, of=None, per_step=2, seed=0, by_name=False):
    page = page or Page()
    told = (per_step, seed, by_name)
    made, shots, counts = slips.slip([of or success()], "environment", page, *told)
    assert page.calls <= 1
    return made, shots, counts


def ends(made):
    return {of.id.split("~", 1)[1].split("-")[0]: of.final for of in made}


def test_each_step_is_left_out_once_and_put_on_what_no_step_acts_on():
    """Of OK, Help: Help alone, OK alone, Cancel then Help, OK then Cancel."""
    assert success().success
    made, shots, counts = slipped()
    assert counts == Counter(omitted=2, substituted=2)
    assert ends(made) == {
        "omitted~0": name("h"),
        "omitted~1": name("o"),
        "substituted~0": name("ch"),
        "substituted~1": name("oc"),
    }
    assert set().union(*map(names, made)) == shots.keys()
    assert all(picture in shots.values() for picture in map(picture, ("", "h", "o", "ch", "oc")))
    for of in made:
        assert (of.success, of.outcome_score, of.goal) == (None, None, "Press OK, then Help")
        assert of.done == (len(of.steps) == 2) and of.source["of"] == success().id
        assert of.source["success_by"] == "environment" and of.source["parent"]["how"] == "greedy"


def test_the_words_are_those_of_what_was_pressed_or_of_what_was_meant():
    said = set()
    for seed in range(20):
        for of in slipped(seed=seed)[0]:
            if of.source["corruption"] == "substituted":
                (wrong,) = [s.action for s in of.steps if s.action.coordinate == CANCEL.place]
                said.add(wrong.action_desc)
    assert said == {"Click Cancel", "Click OK", "Click Help"}


def test_named_steps_say_what_they_hit():
    """Whatever is drawn, and also of what the success said wrongly."""
    pressed = {"o": "Click OK", "h": "Click Help", "c": "click Cancel"}
    wrong = success()
    wrong = dataclasses.replace(
        wrong,
        steps=tuple(
            dataclasses.replace(s, action=dataclasses.replace(s.action, action_desc="Click Cancel"))
            for s in wrong.steps
        ),
    )
    for seed in range(10):
        for of in slipped(seed=seed, by_name=True)[0]:
            for step in of.steps:
                hit = element_at(ELEMENTS, step.action.coordinate).text[0].lower()
                assert step.action.action_desc.casefold() == pressed[hit].casefold()
                assert step.text == render(step.action)
        for of in slipped(of=wrong, seed=seed, by_name=True)[0]:
            for step in of.steps:
                hit = element_at(ELEMENTS, step.action.coordinate).text
                assert step.action.action_desc.casefold() == f"click {hit}".casefold()


def test_rows_claim_completion_and_are_bad():
    rows = corruption_rows(slipped()[0])
    assert [row.source for row in rows] == ["omitted", "substituted"] * 2
    for row in rows:
        assert row.action == COMPLETED and row.label is False
        assert (row.level, row.verdict) == ("outcome", "construction")
        assert len(row.view.history) == row.view.step == len(row.view.screenshots) - 1


def test_the_pages_verdict_is_not_read():
    """A page that forgives ends on the picture of the success, and only that is seen: where the words
    are the success's too, nothing tells the two apart."""
    alike, told = 0, 0
    for seed in range(20):
        made, _, counts = slipped(Page(forgives=True), seed=seed)
        assert counts["omitted"] == 2 and counts["same"] + counts["substituted"] == 2
        alike, told = alike + counts["same"], told + counts["substituted"]
        for of in made:
            if of.source["corruption"] == "substituted":
                assert "Click Cancel" in {step.action.action_desc for step in of.steps}
    assert alike and told


def test_a_step_that_was_not_needed_is_no_slip():
    """Its picture is the success's, whatever was said."""
    of = success("oh")
    page = Page(ends=3)  # so that no step but the last ends it
    page._seen = lambda state: Observation(of.goal, picture("oh"), FRAME, ELEMENTS, False, 0.0)
    counts = slipped(page, of=of)[2]
    assert counts["omitted"] == 0 and counts["same"] >= 2


def test_nothing_is_played_after_the_page_has_ended_the_episode():
    made, _, _ = slipped(Page(ends=1))
    assert {len(of.steps) for of in made} == {1}


def test_a_screen_out_of_reach_costs_its_slip_alone():
    made, _, counts = slipped(Page(broken=("c",)))
    assert counts == Counter(omitted=2, substituted=1, broken=1)
    assert "substituted~0" not in ends(made)


def test_a_claim_of_completion_is_no_step():
    of = success("oh", (terminate(),))
    assert ends(slipped(of=of)[0]) == ends(slipped()[0])


@pytest.mark.parametrize("per_step", [0, 2])
def test_failures_have_no_slips_and_clicks_none_for_0(per_step):
    assert slipped(of=success("ho"), per_step=per_step) == ([], {}, Counter())
    counts = slipped(per_step=per_step)[2]
    assert counts["substituted"] == per_step and counts["omitted"] == 2
