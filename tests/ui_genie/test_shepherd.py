"""Step labels by continuation, by hand and against a world where every state's worth is known."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.ui_genie.environment import State
from selfevolve_jax.ui_genie.shepherd import label_steps
from selfevolve_jax.ui_genie.trajectory import state_at
from tests.ui_genie.episodes import click, episode, terminate

A, B, C, D = (click(letter, (20 + i, 60)) for i, letter in enumerate("ABCD"))


class World:
    """Continuations succeed from the states that are told, so many times of n."""

    def __init__(self, wins):
        self.wins, self.calls = wins, []

    def __call__(self, states, n, seed):
        self.calls.append((list(states), n, seed))
        return [[k < self.wins.get(state, 0) for k in range(n)] for state in states]


def state(*actions):
    return State("click-test", 7, actions)


def labels(of):
    return [step.label for step in of.steps]


def test_a_failure_by_hand():
    good = episode("good", "abc", [A, B])
    bad = episode("bad", "abxyz", [A, C, D, B], success=False)
    world = World({state(A, C): 1})
    result = label_steps([good, bad], "environment", world, seed=3)
    # after A a success goes on; after C one continuation of five succeeds; after D none; B ended it
    assert labels(result.trajectories[0]) == [True, True]
    assert labels(result.trajectories[1]) == [True, True, False, False]
    assert world.calls == [([state(A, C), state(A, C, D)], 5, 3)]
    assert result.counts == {
        "successes": 1,
        "failures": 1,
        "unjudged": 0,
        "positive": 4,
        "negative": 2,
        "sampled": 2,
        "known": 1,
        "ended": 1,
        "states": 2,
        "continuations": 10,
    }
    assert result.rescued == 0.5
    told = [{k: v for k, v in r.provenance.items() if k != "of"} for r in result.rows]
    assert told == [
        {"how": "success"},
        {"how": "success"},
        {"how": "known", "success": "good"},
        {"how": "sampled", "continuations": 5, "successes": 1},
        {"how": "sampled", "continuations": 5, "successes": 0},
        {"how": "ended"},
    ]
    assert [r.label for r in result.rows] == [True, True, True, True, False, False]
    assert {(r.source, r.verdict, r.level) for r in result.rows} == {
        ("shepherd", "environment", "step")
    }


def test_what_does_not_parse_is_bad_and_nothing_follows():
    bad = episode("bad", "abb", [A, None], success=None, done=False)
    world = World({state(A): 5})
    for by in ("environment", "judge"):  # a failure by anyone's word
        result = label_steps([bad], by, world, seed=0)
        assert labels(result.trajectories[0]) == [True, False]
        assert [r.action for r in result.rows] == [A]  # there is no action to judge
        assert world.calls[-1][0] == [state(A)]


@pytest.mark.parametrize("status", ["success", "failure"])
def test_a_claim_ends_it(status):
    bad = episode("bad", "abb", [A, terminate(status)], success=False, done=False)
    world = World({state(A): 0})
    result = label_steps([bad], "environment", world, seed=0)
    assert world.calls[0][0] == [state(A)]
    assert labels(result.trajectories[0]) == [False, False]
    # whether the task is complete is the outcome row's question; giving up is a step like another
    assert len(result.rows) == (1 if status == "success" else 2)


def test_a_failure_that_was_cut_off_is_continued_from_its_last_screen():
    bad = episode("bad", "abc", [A, B], success=False, done=False)
    world = World({state(A, B): 2})
    assert labels(label_steps([bad], "environment", world, 0).trajectories[0]) == [False, True]
    ended = dataclasses.replace(bad, done=True)
    assert labels(label_steps([ended], "environment", world, 0).trajectories[0]) == [False, False]
    assert [len(call[0]) for call in world.calls] == [2, 1]


def test_a_state_that_two_failures_share_is_asked_once():
    given_ = [
        episode("one", "abc", [A, B], success=False),
        episode("two", "abx", [A, C], success=False),
    ]
    world = World({state(A): 1})
    result = label_steps(given_, "environment", world, 0, n=2)
    assert world.calls == [([state(A)], 2, 0)]
    assert [labels(of) for of in result.trajectories] == [[True, False]] * 2
    assert result.counts["continuations"] == 2


def test_the_word_asked_for_decides_alone():
    of = episode("e", "abc", [A, B], success=True, outcome_score=0.2)
    unknown = episode("u", "abc", [A, B], success=None, outcome_score=None)
    world = World({})
    gold = label_steps([of, unknown], "environment", world, 0)
    judge = label_steps([of, unknown], "judge", world, 0)
    assert labels(gold.trajectories[0]) == [True, True] and gold.rescued is None
    assert labels(judge.trajectories[0]) == [False, False] and judge.rescued == 0
    assert {r.verdict for r in judge.rows} == {"judge"}
    for result in (gold, judge):
        assert result.trajectories[1] == unknown  # no verdict: neither label nor row
        assert result.counts["unjudged"] == 1 and len(result.rows) == 2


def test_without_failures_nothing_is_asked():
    world = World({})
    label_steps([episode("e", "ab", [A])], "environment", world, 0)
    label_steps([], "environment", world, 0)
    assert world.calls == []


@pytest.mark.parametrize("given_", [[], [[True]], [[True] * 5] * 2])
def test_an_answer_of_another_shape_is_refused(given_):
    bad = episode("bad", "abc", [A, B], success=False)
    with pytest.raises(ValueError, match="5 verdicts for each of 1 states"):
        label_steps([bad], "environment", lambda *_: given_, 0)


walks = st.lists(
    st.tuples(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=5), st.booleans()),
    max_size=6,
)


@settings(max_examples=60)
@given(walks=walks, winning=st.sets(st.integers(0, 40)))
def test_against_a_world_that_knows(walks, winning):
    """A step is bad exactly if it ended its failure or no success is known from where it led."""
    given_ = [
        episode(f"e{n}", "abcdef"[: len(actions) + 1], actions, success=good)
        for n, (actions, good) in enumerate(walks)
    ]
    every = list(dict.fromkeys(state_at(of, i) for of in given_ for i in range(len(of.steps))))
    world = World({s: 1 for k, s in enumerate(every) if k in winning})
    result = label_steps(given_, "environment", world, 0)
    through = {state_at(of, i) for of in given_ if of.success for i in range(1, len(of.steps))}
    asked = [s for call in world.calls for s in call[0]]
    assert len(world.calls) <= 1 and len(asked) == len(set(asked)) and not through & set(asked)
    for of, labelled in zip(given_, result.trajectories, strict=True):
        n = len(of.steps)
        for i, step in enumerate(labelled.steps):
            after = state_at(of, i + 1)
            reachable = i < n - 1 and (after in through or world.wins.get(after, 0) > 0)
            assert step.label is (of.success or reachable)
    assert result.counts["positive"] + result.counts["negative"] == len(result.rows)
