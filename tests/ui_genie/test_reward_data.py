"""Judged rows: each source's labels by hand, whose word they are, and what the disk keeps."""

import dataclasses
import json
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import reward_rows, trajectory
from selfevolve_jax.ui_genie.actions import Action, render
from selfevolve_jax.ui_genie.contract import COMPLETED
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.reward_data import (
    Level,
    Source,
    balanced,
    demonstration_rows,
    distinct,
    element_at,
    outcome_rows,
    row,
    rule_verified,
    same_action,
    succeeded,
    view_of,
)
from selfevolve_jax.ui_genie.reward_rows import Part, composition, composition_text
from tests.ui_genie.episodes import (
    CANCEL,
    ELEMENTS,
    FRAME,
    click,
    episode,
    name,
    picture,
    pictures,
    terminate,
)


def press(at, time=1.0):
    return Action("long_press", "Hold", coordinate=at, time=time)


def swipe(direction, at=(5, 5), distance="short"):
    return Action("swipe", "Swipe", coordinate=at, direction=direction, distance=distance)


def typed(text, action="type"):
    return Action(action, "Write", text=text)


def button(which):
    return Action("system_button", "Press", button=which)


@pytest.mark.parametrize(
    ("proposed", "truth", "same"),
    [
        (click(at=(10, 50)), click(at=(30, 60)), True),  # the box's first pixel
        (click(at=(49, 69)), click(at=(30, 60)), True),  # and its last
        (click(at=(50, 60)), click(at=(30, 60)), False),  # the first beside it
        (click(at=(30, 70)), click(at=(30, 60)), False),
        (click(at=(60, 60)), click(at=(30, 60)), False),  # another button
        (click(at=(30, 60)), click(at=(150, 200)), None),  # the true point hits nothing
        (press((12, 52), 2.0), press((30, 60)), True),
        (press((30, 60)), click(at=(30, 60)), False),
        (swipe("up", (90, 90), "long"), swipe("up"), True),
        (swipe("down"), swipe("up"), False),
        (typed("  New   York "), typed("New York"), True),
        (typed("e\u0301"), typed("\u00e9"), True),  # one letter, written in two ways
        (typed("new york"), typed("New York"), False),  # fields want capitals
        (typed("New Yor"), typed("New York"), False),  # a part is not the whole
        (typed(""), typed("New York"), False),
        (typed("chrome", "open"), typed("Chrome", "open"), True),
        (typed("Chrome", "open"), typed("Chrome"), False),
        (button("Back"), button("Back"), True),
        (button("Home"), button("Back"), False),
        (Action("wait", "w", time=9.0), Action("wait", "w", time=1.0), True),
        (terminate("success"), terminate("success"), True),
        (terminate("failure"), terminate("success"), False),
        (click(), terminate("success"), False),
    ],
)
def test_same_action_by_hand(proposed, truth, same):
    assert same_action(proposed, truth, FRAME, ELEMENTS) is same


def test_beside_the_label_but_on_its_button_nobody_can_say():
    inner = Element("text", "OK", (20, 55, 30, 65))
    outer = Element("button", "OK!", (10, 50, 50, 70))
    shown = (outer, inner, CANCEL)
    truth = click(at=(25, 60))
    assert element_at(shown, (25, 60)) == inner
    assert same_action(click(at=(12, 52)), truth, FRAME, shown) is None
    assert same_action(click(at=(29, 64)), truth, FRAME, shown) is True
    assert same_action(click(at=(70, 60)), truth, FRAME, shown) is False


def test_rule_verification_judges_what_the_agent_wrote():
    demo = episode("d", "abcc", [click(at=(30, 60)), typed("x"), terminate()])
    texts = {
        0: [render(click("a", (20, 55)))] * 3 + [render(click("b", (70, 60))), "no call"],
        1: [render(typed("y")), "<tool_call>{</tool_call>", render(terminate())],
        2: [render(terminate())],
    }
    seen = []

    def propose(asked):
        seen.append([(of.id, i) for of, i in asked])
        return [texts[i] for _, i in asked]

    rows, counts = rule_verified([demo], "judge", propose)
    assert seen == [[("d", 0), ("d", 1), ("d", 2)]]  # one call
    assert [(r.view.step, r.action.action, r.label, r.level) for r in rows] == [
        (0, "click", True, "step"),
        (0, "click", False, "step"),
        (1, "type", False, "step"),
        (1, "terminate", False, "outcome"),
        (2, "terminate", True, "outcome"),
    ]
    assert counts == {
        "positive": 2,
        "negative": 3,
        "repeated": 2,
        "unparsable: no_tool_call": 1,
        "unparsable: malformed_json": 1,
    }
    assert {(r.source, r.verdict) for r in rows} == {("rule_verified", "rule")}
    assert [r.provenance["samples"] for r in rows] == [3, 1, 1, 1, 1]
    assert rows[0].provenance["truth"]["coordinate"] == [30, 60]
    assert {r.provenance["success_by"] for r in rows} == {"judge"}
    assert rows[0].provenance["of"] == {"round": 0}


def test_what_the_rule_cannot_judge_gives_no_row():
    demo = episode("d", "ab", [click(at=(150, 200))])  # on no element
    rows, counts = rule_verified([demo], "environment", lambda asked: [[render(click())]])
    assert rows == [] and counts == {"undecided": 1, "repeated": 0}


def test_demonstrations_are_good_step_by_step():
    demo = episode("d", "abb", [click(), terminate()])
    rows = demonstration_rows([demo])
    assert [(r.view.step, r.label, r.source, r.verdict) for r in rows] == [
        (0, True, "demonstration", "demonstration")
    ]
    for bad in (episode("d", "ab", success=False), episode("d", "ab", [None])):
        with pytest.raises(UserError, match="demonstration d"):
            demonstration_rows([bad])


def test_outcomes_go_by_the_word_that_was_asked_for():
    """The environment and the judge differ on every episode: whichever is asked decides alone."""
    given_ = [
        episode("right", "ab", success=True, outcome_score=0.1),
        episode("wrong", "abb", [click(), terminate()], success=False, outcome_score=0.9),
        episode("silent", "ab", success=None, outcome_score=None),
    ]
    gold = outcome_rows(given_, "environment")
    judge = outcome_rows(given_, "judge")
    assert [(r.view.trajectory, r.label, r.source) for r in gold] == [
        ("right", True, "outcome"),
        ("wrong", False, "real_failure"),
    ]
    assert [(r.view.trajectory, r.label, r.source) for r in judge] == [
        ("right", False, "real_failure"),
        ("wrong", True, "outcome"),
    ]
    assert {r.verdict for r in gold} == {"environment"} and {r.verdict for r in judge} == {"judge"}
    assert {(r.action, r.level) for r in gold + judge} == {(COMPLETED, "outcome")}
    # the agent's own claim is not in the history that it is judged by
    assert gold[1].view.history == ("Click OK",)
    assert gold[1].view.screenshots[-1] == given_[1].final


def test_half_a_chance_is_no_success():
    assert succeeded(episode("e", "ab", outcome_score=0.5), "judge") is False
    with pytest.raises(ValueError, match="anyone"):
        succeeded(episode("e", "ab"), "anyone")


def made_rows(labels):
    of = episode("e", "ab")
    return [
        row(of, 0, click(f"{n}"), label, "shepherd", "judge", level)
        for n, (label, level) in enumerate(labels)
    ]


@settings(max_examples=50)
@given(
    labels=st.lists(st.tuples(st.booleans(), st.sampled_from(get_args(Level))), max_size=30),
    seed=st.integers(0, 3),
)
def test_balanced_is_half_and_half_at_each_level(labels, seed):
    rows = made_rows(labels)
    made = balanced(rows, seed)
    assert made == balanced(rows, seed)
    given_, left = (Counter((r.level, r.label) for r in these) for these in (rows, made))
    both = [v for v in get_args(Level) if given_[v, True] and given_[v, False]]
    kept = [r for r in rows if r.level in both]
    assert made[: len(kept)] == kept  # nothing that has a counterpart is lost
    for level in get_args(Level):
        more = max(given_[level, True], given_[level, False]) if level in both else 0
        assert left[level, True] == left[level, False] == more
    # What is repeated is repeated alike, to one more or less.
    for kind in left:
        times = Counter(rows.index(r) for r in made if (r.level, r.label) == kind)
        assert max(times.values()) - min(times.values()) <= 1


def test_distinct_keeps_the_first_of_each_judgement():
    rows = made_rows([(True, "step"), (False, "step"), (True, "outcome")])
    later = [dataclasses.replace(r, provenance={"later": True}) for r in rows]
    turned = dataclasses.replace(rows[0], label=False)  # another judgement of the same action
    assert distinct([*rows, *later, turned]) == [*rows, turned]


def test_balancing_draws_by_its_seed():
    rows = made_rows([(True, "step")] * 20 + [(False, "step")] * 2)
    draws = {tuple(r.action.action_desc for r in balanced(rows, seed)) for seed in range(5)}
    assert len(draws) > 1


def some_rows():
    demo = episode("d", "abc", [click(), click("Click Cancel", (90, 60))])
    failed = episode("f", "ab", success=False)
    return demonstration_rows([demo]) + outcome_rows([demo, failed], "environment")


def test_composition_counts_by_source_and_level():
    rows = some_rows()
    assert composition(rows) == [
        Part("demonstration", "step", 2, 2, 0),
        Part("outcome", "outcome", 1, 1, 0),
        Part("real_failure", "outcome", 1, 0, 1),
        Part("all", "step", 2, 2, 0),
        Part("all", "outcome", 2, 1, 1),
        Part("all", "all", 4, 3, 1),
    ]
    lines = composition_text([*composition(rows), Part("big", "all", 263_000, 121_000, 142_000)])
    assert lines.splitlines()[0].split() == ["source", "level", "total", "positive", "negative"]
    assert lines.splitlines()[-1].split() == ["big", "all", "263,000", "121,000", "142,000"]
    assert len({len(line) for line in lines.splitlines()}) == 1
    assert composition([])[-1] == Part("all", "all", 0, 0, 0)


@settings(max_examples=25)
@given(labels=st.lists(st.tuples(st.booleans(), st.sampled_from(get_args(Level)))))
def test_a_composition_sums_up(labels):
    parts = composition(made_rows(labels))
    assert all(part.positive + part.negative == part.total for part in parts)
    by_source = sum(part.total for part in parts if part.source in get_args(Source))
    assert by_source == parts[-1].total == len(labels)


def test_the_disk_gives_the_rows_back(tmp_path):
    rows = some_rows()
    reward_rows.write(tmp_path / "rows" / "train.jsonl", rows)
    assert reward_rows.read(tmp_path / "rows" / "train.jsonl") == rows


def test_a_rows_view_is_the_trajectorys_own(tmp_path):
    demo = episode("d", "abc", [click(), click("Click Cancel", (90, 60))])
    trajectory.write(tmp_path, [demo], pictures("abc"))
    shots = tmp_path / "screenshots"
    for i in range(3):
        for images in range(4):
            judged = row(demo, i, click(), True, "shepherd", "judge")
            assert view_of(judged, shots, images) == trajectory.view_at(demo, i, shots, images)
    assert view_of(row(demo, 1, click(), True, "shepherd", "judge"), shots).screenshots == (
        picture("a"),
        picture("b"),
    )
    (shots / name("a")).unlink()
    with pytest.raises(UserError, match="step 1 of trajectory d"):
        view_of(row(demo, 1, click(), True, "shepherd", "judge"), shots)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("label",), 1, "'label' is 1, not bool"),
        (("source",), "guess", "'source' is 'guess', not one of demonstration"),
        (("verdict",), "me", "'verdict' is 'me'"),
        (("level",), "all", "'level' is 'all'"),
        (("action",), None, "'action' is null"),
        (("action", "coordinate"), [1], "ill_typed_field"),
        (("view", "screenshots"), [], "0 screenshots for a history of 1"),
        (("view", "screenshots"), ["../a.png", "b"], "not HASH.png"),
        (("view", "history"), [3], "not a list of texts"),
        (("view", "frame", "height"), -1, "height is -1"),
        (("note",), "x", "unknown fields note"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(tmp_path, path, value, said):
    file = tmp_path / "rows.jsonl"
    reward_rows.write(file, some_rows())
    lines = file.read_text().splitlines()
    record = json.loads(lines[1])
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    lines[1] = json.dumps(record)
    file.write_text("\n".join(lines))
    with pytest.raises(UserError) as raised:
        reward_rows.read(file)
    assert str(raised.value).startswith(f"{file} line 2") and said in str(raised.value)
