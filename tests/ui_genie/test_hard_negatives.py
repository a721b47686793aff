"""Wrong actions that the model likes: what may be one, by hand, and that only those are kept."""

import dataclasses

import numpy as np
import pytest

from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.hard_negatives import hard_negatives, on_another, unrelated
from selfevolve_jax.ui_genie.reward_data import element_at
from tests.ui_genie.episodes import CANCEL, ELEMENTS, FRAME, HELP, OK, click, episode


def typed(text, desc=None):
    return Action("type", f"type {text}" if desc is None else desc, text=text)


def mined(*shown, score=lambda asked: [[0.9] * len(made) for _, _, made in asked], **options):
    return hard_negatives(shown, "judge", score, **{"per_step": 9, "seed": 0, **options})


def with_elements(of, *elements):
    return dataclasses.replace(
        of, steps=tuple(dataclasses.replace(step, elements=elements) for step in of.steps)
    )


def others_of(of, i=0):
    target = element_at(of.steps[i].elements, of.steps[i].action.coordinate)
    return unrelated(of, i, target)


def test_only_what_the_model_likes_is_kept():
    demo = episode("d", "ab", [click("Click OK", (30, 60))])
    likes = {CANCEL.place: 0.51, HELP.place: 0.5}  # 0.5 is not above 0.5

    def score(asked):
        assert [(of.id, i) for of, i, _ in asked] == [("d", 0)]
        return [[likes.get(a.coordinate, 0.1) for a in made] for _, _, made in asked]

    rows, counts = mined(demo, score=score)
    assert counts == {"proposed": 3, "kept": 1}  # Cancel, Help, and where nothing is
    (only,) = rows
    assert only.action.coordinate == CANCEL.place
    assert (only.label, only.source, only.verdict) == (False, "hard_negative", "construction")
    assert (only.provenance["score"], only.provenance["success_by"]) == (0.51, "judge")
    assert only.provenance["truth"]["coordinate"] == [30, 60]


def test_named_ones_are_scored_in_the_words_that_they_are_kept_with():
    demo = episode("d", "ab", [click("Click OK", (30, 60))])
    asked = []

    def score(given):
        asked.extend(action for _, _, made in given for action in made)
        return [[0.9] * len(made) for _, _, made in given]

    rows, _ = mined(demo, score=score, by_name=True)
    assert [row.action for row in rows] == asked
    for action in asked:
        hit = element_at(ELEMENTS, action.coordinate)
        assert action.action_desc.casefold() == f"click {hit.text if hit else 'nothing'}".casefold()
    assert len(asked) == 3


def test_a_wrong_place_goes_by_its_own_words_and_by_the_true_ones():
    truth = click("click OK", OK.place)
    made = {on_another(truth, OK, CANCEL, np.random.default_rng(n)) for n in range(20)}
    assert made == {click("click Cancel", CANCEL.place), click("click OK", CANCEL.place)}
    # What shows nothing is called by its kind, in the form of the true words.
    field = dataclasses.replace(OK, kind="input", text="")
    truth = click("click input", OK.place)
    made = {on_another(truth, field, CANCEL, np.random.default_rng(n)) for n in range(20)}
    assert made == {click("click Cancel", CANCEL.place), click("click input", CANCEL.place)}
    # A name that is part of the verb is not replaced there.
    letter, truth = dataclasses.replace(OK, text="c"), click("click c", OK.place)
    made = {on_another(truth, letter, CANCEL, np.random.default_rng(n)) for n in range(20)}
    assert made == {click("click Cancel", CANCEL.place), click("click c", CANCEL.place)}
    # Words that do not name the target are replaced whole, in their case.
    for said, verb in (("click it", "click"), ("Click it", "Click"), ("Go on", "Click")):
        truth = click(said, OK.place)
        made = {on_another(truth, OK, CANCEL, np.random.default_rng(n)) for n in range(20)}
        assert made == {click(f"{verb} Cancel", CANCEL.place), click(said, CANCEL.place)}


@pytest.mark.parametrize(
    "other",
    [
        Element("text", "away", (40, 60, 90, 90)),  # overlaps the target
        Element("button", " ok ", (60, 90, 90, 99)),  # says the same
        Element("button", "empty", (60, 90, 60, 99)),  # nothing to hit
        Element("button", "below", (60, 300, 90, 310)),  # not on the frame
    ],
)
def test_related_elements_are_not_taken(other):
    assert others_of(with_elements(episode("d", "ab", [click()]), OK, other)) == []


def test_of_fields_without_a_name_the_other_is_wrong():
    """Of two empty text fields one is meant: nothing else on such a page could be judged."""
    first = Element("input", "", (10, 50, 100, 70))
    second = dataclasses.replace(first, box=(10, 80, 100, 100))
    demo = with_elements(episode("d", "ab", [click("click input", first.place)]), first, second)
    assert others_of(demo) == [second]
    both = [click("click input", first.place), click("click input", second.place)]
    assert others_of(with_elements(episode("d", "abc", both), first, second)) == []


def test_what_another_step_clicks_may_be_right_now_too():
    demo = episode("d", "abc", [click("Click OK", (30, 60)), click("Click Cancel", (90, 60))])
    assert others_of(demo, 0) == others_of(demo, 1) == [HELP]
    # by its place too: what stands there may only have changed its text
    second = dataclasses.replace(
        demo.steps[1], elements=(OK, dataclasses.replace(CANCEL, text="Send"))
    )
    renamed = dataclasses.replace(demo, steps=(demo.steps[0], second))
    assert others_of(renamed, 0) == [HELP]


def test_a_miss_is_where_nothing_is():
    demo = episode("d", "ab", [click("Click OK", (30, 60))])
    for seed in range(20):
        rows, _ = mined(demo, seed=seed, per_step=0)
        (miss,) = [row.action for row in rows]
        assert miss.action_desc == "Click OK" and FRAME.holds(miss.coordinate)
        assert element_at(ELEMENTS, miss.coordinate) is None
    # On a screen that is full there is no such place.
    full = Element("view", "", (0, 0, 160, 210))
    rows, counts = mined(with_elements(demo, OK, full), per_step=0)
    assert rows == [] and counts == {"proposed": 0, "kept": 0}


def test_other_words_to_type_are_those_of_others_or_of_the_screen():
    name = Element("text", "Name", (10, 50, 50, 70))
    login = [typed("Ann"), typed("s3cret", "write it")]
    demo = with_elements(episode("d", "abc", login, goal='"Ann", "s3cret"'), name)
    other = with_elements(episode("e", "ab", [typed("Bob")]), name, Element("text", "bob", OK.box))
    rows, _ = mined(demo, other)
    assert [(row.view.trajectory, row.view.step) for row in rows] == [
        *[("d", 0)] * 2,
        *[("d", 1)] * 2,
        *[("e", 0)] * 3,
    ]
    # What another step of the same one types may be right here too; case alone makes no other text.
    assert {row.action for row in rows if row.view.step == 0 and row.view.trajectory == "d"} == {
        typed("Bob"),
        typed("Name"),
    }
    assert {row.action.action_desc for row in rows if row.view.step == 1} == {"write it"}
    assert {row.action.text for row in rows if row.view.trajectory == "e"} == {
        *("Ann", "s3cret", "Name")
    }


def test_it_draws_as_many_as_asked_and_the_same_again():
    others = tuple(Element("button", f"b{k}", (60, 80 + 9 * k, 90, 87 + 9 * k)) for k in range(10))
    demo = with_elements(episode("d", "ab", [click()]), OK, *others)
    draws = [mined(demo, per_step=4, seed=seed)[0] for seed in (0, 0, 1, 2, 3)]
    assert all(len({row.action for row in rows}) == 4 + 1 for rows in draws)
    assert draws[0] == draws[1]
    assert len({frozenset(row.action for row in rows) for rows in draws}) > 1


def test_other_actions_have_no_wrong_twin():
    swipe = Action("swipe", "up", coordinate=(30, 60), direction="up", distance="short")
    nowhere = click(at=(150, 200))  # the rule cannot say what it was meant for
    demo = episode("d", "abcd", [swipe, nowhere, Action("wait", "w", time=1.0)])
    assert mined(demo) == ([], {"proposed": 0, "kept": 0})
