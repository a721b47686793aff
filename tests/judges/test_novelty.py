"""Novelty against sets worked by hand, and the order that the rewards must keep."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.novelty import evol, novelty
from selfevolve_jax.judges.vote import majority_vote
from selfevolve_jax.tasks.base import AnswerSpec, Row

SPEC = AnswerSpec(pattern=r"=(\w+)$", equivalence="exact")
exact = Equivalence("exact")


def rows(n):
    return [Row(id=i, prompt="?", prompt_tokens=()) for i in range(n)]


def test_novelty_by_hand():
    # Grams: {abcd, bcde}, {abcd}, {abcd, bcdf}, none shared.
    got = novelty(["a b c d e", "a b c d", "a b c d f", "x y z w"])
    np.testing.assert_allclose(got, [1 - 1 / 2, 1 - 1 / 2, 1 - 1 / 2, 1])
    # {abcd, bcde} and {abcd, bcdf} share one gram of three.
    np.testing.assert_allclose(novelty(["a b c d e", "a b c d f"]), [2 / 3, 2 / 3])
    assert novelty(["the same words again", "the same words again", "others"]).tolist() == [0, 0, 1]


def test_texts_shorter_than_a_gram():
    assert novelty(["a b", "a b", "a", ""]).tolist() == [0, 0, 1, 1]
    assert novelty(["", " "]).tolist() == [0, 0]
    assert novelty(["alone"]).tolist() == [1] and novelty([]).tolist() == []


def test_digits_stand_alone():
    """7431 and 7432 are chains of digits and not two words: 743 1, 743 2 share no 4-gram of four
    digits, but five digits share one."""
    assert novelty(["74311", "74312"])[0] == pytest.approx(2 / 3)
    assert novelty(["word1", "word 1"]).tolist() == [0, 0]


def test_rewards_worked_by_hand():
    texts = [
        "a b c d e =1",  # majority, twice the same
        "a b c d e =1",
        "x y z w v =1",  # majority, new
        "a b c d e =2",  # minority; what it shares with the majority does not count
        "a b c d f =3",
        "q r s t u =4",
        "a b c d e",  # no answer
    ]
    verdict = evol(SPEC, exact)(rows(1), [texts], 0)
    # Minority: the first two share one gram of five, the last none: scaled to 0, 0, 1.
    np.testing.assert_allclose(verdict.rewards_RxG[0], [0.5, 0.5, 1, -1, -1, -0.5, -1], atol=1e-6)
    np.testing.assert_allclose(verdict.parts["novelty"][0], [0, 0, 1, 0, 0, 1, 0], atol=1e-6)
    assert verdict.trained_RxG.all() and verdict.pseudo_labels == ["1"]
    assert verdict.rewards_RxG.dtype == np.float32


def test_between_the_least_and_the_most_novel():
    texts = ["a b c d =1", "a b c d e =1", "a b c d f g =1", "p q r s =1"]
    raw = novelty([t[:-1] for t in texts])  # the reasoning ends before the answer's string
    assert len(set(raw.round(6))) == 3
    verdict = evol(SPEC, exact)(rows(1), [texts], 0)
    want = 0.5 + (raw - raw.min()) / (raw.max() - raw.min()) / 2
    np.testing.assert_allclose(verdict.rewards_RxG[0], want, rtol=1e-6)


def test_a_lone_or_uniform_side_has_no_novelty():
    verdict = evol(SPEC, exact)(rows(2), [["a b c d =1"] * 2 + ["e =2"], ["=1", "=2", "=3"]], 0)
    assert verdict.rewards_RxG[0].tolist() == [0.5, 0.5, -1]
    assert verdict.rewards_RxG[1, 0] == 0.5  # a tie: the first seen is the majority


def test_the_answer_itself_is_no_novelty():
    """Two wrong answers after the same reasoning are equally novel as two after their own."""
    verdict = evol(SPEC, exact)(
        rows(1), [["u =1", "u =1", "a b c d =2", "a b c d =3", "e f =4"]], 0
    )
    assert verdict.parts["novelty"][0].tolist() == [0, 0, 0, 0, 1]


def test_groups_without_an_answer_or_under_the_threshold_leave():
    texts = [["a", "b", "c"], ["x =1", "y =1", "z =2"], ["x =1", "y =2", "z =3"]]
    verdict = evol(SPEC, exact, threshold=0.6)(rows(3), texts, 0)
    assert verdict.trained_RxG.all(axis=1).tolist() == [False, True, False]
    assert not verdict.rewards_RxG[[0, 2]].any()


def test_all_are_compared_and_the_first_trained():
    texts = [["a b c d =1", "e f g h =1", "a b c d =1"]]
    verdict = evol(SPEC, exact, trained=2)(rows(1), texts, 0)
    assert verdict.rewards_RxG.tolist() == [[0.5, 1, 0]]  # the third makes the first no news
    with pytest.raises(UserError, match="threshold"):
        evol(SPEC, exact, threshold=-1)


words = st.lists(st.sampled_from("abcde"), max_size=9).map(" ".join)
samples = st.tuples(words, st.sampled_from(["1", "2", "3", None])).map(
    lambda s: s[0] if s[1] is None else f"{s[0]} ={s[1]}"
)
groups = st.lists(samples, min_size=1, max_size=9)


@given(group=groups)
def test_every_reward_lies_on_its_side(group):
    verdict = evol(SPEC, exact)(rows(1), [group], 0)
    won = majority_vote(SPEC, exact)(rows(1), [group], 0).rewards_RxG[0] > 0
    if not verdict.trained_RxG.any():
        assert not won.any()
        return
    parsed = np.array([a is not None for a in verdict.answers[0]])
    reward = verdict.rewards_RxG[0]
    assert ((reward >= 0.5) & (reward <= 1))[won].all()
    assert ((reward >= -1) & (reward <= -0.5))[parsed & ~won].all()
    assert (reward[~parsed] == -1).all()
    assert won.any() and reward[won].min() == 0.5


@given(group=groups, data=st.data())
def test_permuting_samples_permutes_rewards(group, data):
    judge = evol(SPEC, exact)
    straight = judge(rows(1), [group], 0)
    counts = sorted(straight.votes[0].values(), reverse=True)
    assume(len(counts) < 2 or counts[0] > counts[1])
    order = data.draw(st.permutations(range(len(group))))
    permuted = judge(rows(1), [[group[i] for i in order]], 0)
    np.testing.assert_array_equal(permuted.rewards_RxG[0], straight.rewards_RxG[0][order])
