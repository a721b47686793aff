"""Corruptions: by hand what each makes, by property that none leaves a task complete."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.contract import COMPLETED
from selfevolve_jax.ui_genie.corruption import Proportions, corrupt, corruption_rows
from selfevolve_jax.ui_genie.trajectory import names, outcome_at
from tests.ui_genie.episodes import click, episode, name, terminate

WAIT = Action("wait", "Wait", time=1.0)


def only(kind, foreign=0.0):
    shares = {"truncation": 0.0, "cross_task": 0.0, "redundant": 0.0, kind: 1.0}
    return Proportions(**shares, foreign=foreign)


def made(trajectories, proportions, count=99, seed=0, by="environment", **options):
    return corrupt(trajectories, by, proportions, count, seed, **options).trajectories


def screens(of):
    return list(names(of))


def letters(text):
    return [name(letter) for letter in text]


def test_truncation_claims_completion_before_the_last_change():
    found = made([episode("e", "abcd")], only("truncation"))
    assert sorted(screens(of) for of in found) == sorted(
        [letters("a"), letters("ab"), letters("abc")]
    )
    whole = max(found, key=lambda of: len(of.steps))
    assert whole.source == {
        "corruption": "truncation",
        "of": "e",
        "cut": 2,
        "parent": {"round": 0},
        "success_by": "environment",
    }
    assert (whole.id, whole.success, whole.done) == ("e~truncation~2", None, False)


@pytest.mark.parametrize(
    ("of", "cuts"),
    [
        # the last click changes nothing, so the task was complete before it
        (episode("e", "abb"), [0]),
        # a wait is nothing done, whatever the clock on the screen shows
        (episode("e", "abc", [click(), WAIT]), [0]),
        # its own claim is no step of the task
        (episode("e", "abb", [click(), terminate()]), [0]),
        # a screen that looks like the last one may be complete
        (episode("e", "abab"), [0, 2]),
        (episode("e", "aa"), []),
        (episode("e", "a"), []),
    ],
)
def test_a_truncation_that_may_leave_the_task_complete_is_not_made(of, cuts):
    assert sorted(t.source["cut"] for t in made([of], only("truncation"))) == cuts


def test_cross_task_goes_on_with_another_goals_episode():
    own = episode("e", "abc", goal="Press OK")
    other = episode("o", "xyz", goal="Press Cancel")
    found = made([own, other], only("cross_task"))
    mine = [of for of in found if of.source["of"] == "e"]
    assert sorted(screens(of) for of in mine) == sorted(
        letters(path) for path in ("xyz", "yz", "axyz", "ayz")
    )
    for of in mine:
        assert of.goal == "Press OK" and of.final == name("z")
        assert of.source["piece_of"] == "o" and of.source["piece"][1] == 2
        assert of.final_elements == other.final_elements


@pytest.mark.parametrize(
    "other",
    [
        episode("o", "xyz", goal=" press  ok"),  # the same goal
        episode("o", "xyc", goal="Press Cancel"),  # ends on what looks like the own last screen
        episode("o", "xyz", goal="Press Cancel", task="another-family"),
        episode("o", "xyz", goal="Press Cancel", success=False),
        episode("o", "z", goal="Press Cancel"),  # nothing to take
        dataclasses.replace(episode("o", "xyz", goal="Press Cancel"), frame=Frame(320, 420)),
    ],
)
def test_an_unfit_partner_is_not_taken(other):
    own = episode("e", "abc")
    for kind in ("cross_task", "redundant"):
        found = made([own, other], only(kind, foreign=1.0))
        assert not [of for of in found if of.source["of"] == "e"]


def test_family_is_the_callers_word():
    given_ = [
        episode("e", "abc", source={"app": "mail"}, task="1"),
        episode("o", "xyz", source={"app": "mail"}, task="2", goal="Press Cancel"),
    ]
    assert not made(given_, only("cross_task"))
    assert made(given_, only("cross_task"), family=lambda of: of.source["app"])


def test_redundant_goes_on_after_the_end():
    own = episode("e", "abcc", [click("1"), click("2"), terminate()])
    other = episode("o", "xyz", goal="Press Cancel")
    found = made([own, other], only("redundant", foreign=0.0))
    mine = [of for of in found if of.source["of"] == "e"]
    # steps a and b, then a again: it ends on b, before the last change
    assert [screens(of) for of in mine] == [letters("abab")]
    assert [s.action.action_desc for s in mine[0].steps] == ["1", "2", "1"]
    found = made([own, other], only("redundant", foreign=1.0))
    mine = [of for of in found if of.source["of"] == "e"]
    assert sorted(map(screens, mine)) == sorted([letters("abxyz"), letters("abyz")])


def test_only_successes_by_the_word_asked_for_are_corrupted():
    given_ = [
        episode("gold", "abc", success=True, outcome_score=0.1),
        episode("liked", "xyz", success=False, outcome_score=0.9, goal="Press Cancel"),
    ]
    for by, id in (("environment", "gold"), ("judge", "liked")):
        found = made(given_, only("truncation"), by=by)
        assert {(of.source["of"], of.source["success_by"]) for of in found} == {(id, by)}


def test_scores_and_labels_of_the_lived_steps_are_not_carried_over():
    own = episode("e", "abc", outcome_score=0.9)
    steps = tuple(dataclasses.replace(s, score=0.8, label=True) for s in own.steps)
    for of in made([dataclasses.replace(own, steps=steps)], only("truncation")):
        assert of.outcome_score is None
        assert all(s.score is None and s.label is None for s in of.steps)


def test_what_is_short_is_said_and_not_made_up():
    result = corrupt([episode("e", "abc")], "environment", Proportions(0.5, 0.25, 0.25), 8, 0)
    assert result.wanted == {
        "truncation": 4,
        "cross_task": 2,
        "redundant own": 1,
        "redundant foreign": 1,
    }
    assert result.reached == {
        "truncation": 2,
        "cross_task": 0,
        "redundant own": 1,
        "redundant foreign": 0,
    }
    assert len(result.trajectories) == 3
    nothing = corrupt([], "environment", Proportions(), 8, 0)
    assert nothing.trajectories == [] and sum(nothing.reached.values()) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"truncation": 0.5}, "truncation 0.5, cross_task 0.3, redundant 0.3 sum to 1.1"),
        ({"truncation": -0.1, "redundant": 0.8}, "corruption.truncation is -0.1"),
        ({"foreign": 1.5}, "corruption.foreign is 1.5"),
        ({"foreign": float("nan")}, "corruption.foreign is nan"),
    ],
)
def test_shares_that_are_none_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Proportions(**options)


paths = st.lists(
    st.tuples(st.text("abcde", min_size=1, max_size=6), st.sampled_from(["p", "q", "P "])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60)
@given(paths=paths, count=st.integers(0, 40), seed=st.integers(0, 5))
def test_no_corruption_leaves_a_task_complete(paths, count, seed):
    given_ = {f"e{n}": episode(f"e{n}", p, goal=g) for n, (p, g) in enumerate(paths)}
    result = corrupt(list(given_.values()), "environment", Proportions(), count, seed)
    assert result == corrupt(list(given_.values()), "environment", Proportions(), count, seed)
    rows = corruption_rows(result.trajectories)
    assert not any(r.label for r in rows)
    assert {r.action for r in rows} <= {COMPLETED}
    assert {(r.verdict, r.level) for r in rows} <= {("construction", "outcome")}
    assert len({of.id for of in result.trajectories}) == len(rows)  # no two alike
    by_kind = Counter(of.source["corruption"] for of in result.trajectories)
    assert by_kind["truncation"] == result.reached["truncation"]
    assert all(result.reached[kind] <= result.wanted[kind] for kind in result.wanted)
    for of, r in zip(result.trajectories, rows, strict=True):
        told = of.source
        own = given_[told["of"]]
        end = outcome_at(own)
        assert r.source == told["corruption"] and r.provenance["of"] == told
        assert of.goal == own.goal
        assert of.final != names(own)[end] and r.view.screenshots[-1] == of.final
        # it is what its provenance says, step for step
        other = given_[told.get("piece_of", own.id)]
        first, last = told.get("piece", (told["cut"], told["cut"]))
        expected = [*names(own)[: told["cut"]], *names(other)[first : last + 1]]
        assert screens(of) == expected
        if told["corruption"] == "redundant":
            assert told["cut"] == end and last > first
        else:
            # something of the own task was still to be done, and it changed the screen
            left = names(own)[told["cut"] : end + 1]
            assert len(set(left)) > 1
        if other is not own:
            assert other.goal.strip().lower() != own.goal.strip().lower()


@settings(max_examples=20)
@given(
    shares=st.tuples(*[st.integers(0, 9)] * 3).filter(any),
    foreign=st.sampled_from([0.0, 0.3, 1.0]),
    count=st.integers(0, 60),
)
def test_with_enough_successes_the_proportions_are_reached_within_rounding(shares, foreign, count):
    given_ = [episode(f"e{n}", f"abcdefg{n}", goal=f"goal {n}") for n in range(8)]
    a, b, c = (share / sum(shares) for share in shares)
    proportions = Proportions(a, b, c, foreign)
    result = corrupt(given_, "environment", proportions, count, 0)
    assert result.reached == result.wanted
    assert sum(result.reached.values()) == count
    exact = {
        "truncation": a,
        "cross_task": b,
        "redundant own": c * (1 - foreign),
        "redundant foreign": c * foreign,
    }
    for kind, share in exact.items():
        assert abs(result.reached[kind] - count * share) < 1 + 1e-6
    # each success is used before any is used again
    for kind in ("truncation", "cross_task"):
        used = Counter(
            of.source["of"] for of in result.trajectories if of.source["corruption"] == kind
        )
        if used:
            assert max(used.values()) - min(used.get(of.id, 0) for of in given_) <= 1


def test_another_seed_draws_others():
    given_ = [episode(f"e{n}", f"abcdefg{n}", goal=f"goal {n}") for n in range(8)]
    draws = {
        tuple(of.id for of in made(given_, Proportions(), count=10, seed=seed)) for seed in range(4)
    }
    assert len(draws) == 4
