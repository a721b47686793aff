"""Two views of a problem vote for each other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.ground_truth import label_accuracy
from selfevolve_jax.judges.paired import co_reward, with_views
from selfevolve_jax.judges.vote import majority_vote
from selfevolve_jax.tasks.base import AnswerSpec, Row

EXACT = AnswerSpec(equivalence="exact")
exact = Equivalence("exact")


def row(id, **values):
    return Row(id=id, prompt=f"q{id}", prompt_tokens=(id,), **values)


def views(*ids):
    return [row(id) for id in ids for _ in range(2)]


def box(*answers):
    return ["no answer" if a is None else f"so \\boxed{{{a}}}" for a in answers]


def test_each_view_is_labelled_by_the_other():
    texts = [box("1", "1", "2", None), box("2", "2", "3", "1"), box(*"7777"), box(*"7878")]
    verdict = co_reward(EXACT, exact)(views(4, 9), texts, 0)
    assert list(verdict.pseudo_labels) == ["2", "1", "7", "7"]
    np.testing.assert_array_equal(
        verdict.rewards_RxG, np.float32([[0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0]])
    )
    assert verdict.trained_RxG.all()
    # Votes and fractions are a row's own.
    assert [dict(v) for v in verdict.votes][:2] == [{"1": 2, "2": 1}, {"2": 2, "3": 1, "1": 1}]
    np.testing.assert_array_equal(verdict.majority_fraction_R, np.float32([0.5, 0.5, 1, 0.5]))
    # Its own vote would have said otherwise.
    own = majority_vote(EXACT, exact)(views(4, 9), texts, 0)
    assert (own.rewards_RxG[0] != verdict.rewards_RxG[0]).any()


def test_a_view_leaves_where_the_other_has_no_answer():
    texts = [box("1", "1"), box(None, None)]
    verdict = co_reward(EXACT, exact)(views(0), texts, 0)
    assert list(verdict.pseudo_labels) == [None, "1"]
    assert verdict.trained_RxG.tolist() == [[False, False], [True, True]]
    assert not verdict.rewards_RxG.any()


def test_the_threshold_is_of_the_vote_that_labels():
    texts = [box("1", "1", "1", "2"), box("1", "1", "2", "3")]
    verdict = co_reward(EXACT, exact, threshold=0.6)(views(0), texts, 0)
    assert verdict.trained_RxG.all(axis=1).tolist() == [False, True]
    assert verdict.rewards_RxG.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0]]


def test_all_vote_and_the_first_are_trained():
    texts = [box("1", "2", "2"), box("2", "1", "1")]
    verdict = co_reward(EXACT, exact, trained=1)(views(0), texts, 0)
    assert verdict.rewards_RxG.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert verdict.trained_RxG.tolist() == [[True, False, False]] * 2


groups = st.lists(st.sampled_from([None, "1", "2", "3"]), min_size=4, max_size=4)


@given(one=groups, other=groups)
def test_exchanging_the_views_exchanges_the_verdict(one, other):
    straight = co_reward(EXACT, exact)(views(3), [box(*one), box(*other)], 0)
    turned = co_reward(EXACT, exact)(views(3), [box(*other), box(*one)], 0)
    np.testing.assert_array_equal(straight.rewards_RxG, turned.rewards_RxG[::-1])
    np.testing.assert_array_equal(straight.trained_RxG, turned.trained_RxG[::-1])
    assert list(straight.pseudo_labels) == list(turned.pseudo_labels)[::-1]


@given(group=groups)
def test_views_that_agree_are_a_majority_vote(group):
    texts = [box(*group)] * 2
    paired = co_reward(EXACT, exact)(views(3), texts, 0)
    voted = majority_vote(EXACT, exact)(views(3), texts, 0)
    np.testing.assert_array_equal(paired.rewards_RxG, voted.rewards_RxG)
    np.testing.assert_array_equal(paired.trained_RxG, voted.trained_RxG)


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 2, 2, 1], [1, 1, 2]])
def test_rows_that_are_no_pairs_are_refused(ids):
    with pytest.raises(UserError, match=rf"ids {', '.join(map(str, ids))}\."):
        co_reward(EXACT, exact)([row(i) for i in ids], [box("1")] * len(ids), 0)


def test_what_cannot_be_is_refused_before_the_first_rollout():
    with pytest.raises(UserError, match="threshold"):
        co_reward(EXACT, exact, threshold=1.5)
    with pytest.raises(UserError, match="regular expression"):
        co_reward(replace(EXACT, pattern="("), exact)


def test_every_row_is_followed_by_its_other_view():
    other = Row(id=0, prompt="rephrased", prompt_tokens=(7, 8), images=("b.png",))
    rows = [row(5, gold="1", extra={"pair": other}), row(2, extra={"pair": other})]
    both = with_views(rows)
    assert [r.id for r in both] == [5, 5, 2, 2]
    assert both[::2] == rows
    assert [(r.prompt, r.prompt_tokens, r.images) for r in both[1::2]] == [
        ("rephrased", (7, 8), ("b.png",))
    ] * 2
    assert [r.gold for r in both] == ["1", "1", None, None]
    # Hiding gold afterwards hides every trace of it, and the judge still knows the pairs.
    hidden = [r.hide_gold() for r in both]
    verdict = co_reward(EXACT, exact)(hidden, [box("1"), box("1"), box("2"), box("3")], 0)
    assert verdict.rewards_RxG.tolist() == [[1], [1], [0], [0]]
    np.testing.assert_array_equal(
        label_accuracy(both, verdict, exact), np.float32([1, 1, np.nan, np.nan])
    )


@pytest.mark.parametrize("extra", [{}, {"pair": "What is 2+1?"}])
def test_a_row_without_another_view_is_named(extra):
    with pytest.raises(UserError, match="row 17 has no rephrased question"):
        with_views([row(17, extra=extra)])
