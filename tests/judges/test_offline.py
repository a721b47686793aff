import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.ground_truth import ground_truth
from selfevolve_jax.judges.offline import offline
from selfevolve_jax.judges.registry import make_judge
from selfevolve_jax.judges.vote import majority_vote
from selfevolve_jax.tasks.base import AnswerSpec, Row

EXACT = AnswerSpec(pattern=r"\S+", equivalence="exact")
exact = Equivalence("exact")


def row(id, label=None, gold=None):
    return Row(id=id, prompt="?", prompt_tokens=(), gold=gold, label=label)


ROWS = [row(0, "1", "2"), row(1, "2", "2"), row(2, None, "3"), row(3, "4", "4")]
TEXTS = [["1", "2", "2", ""], ["1", "1", "2", "1"], ["3", "3", "3", "3"], ["", "", "", ""]]


def test_rewards_by_hand():
    """Labels against the vote, against gold, missing, and with nothing to read."""
    verdict = offline(EXACT, exact)(ROWS, TEXTS, 0)
    np.testing.assert_array_equal(
        verdict.rewards_RxG,
        np.float32([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
    )
    assert verdict.trained_RxG.all(axis=1).tolist() == [True, True, False, True]
    assert not verdict.trained_RxG[2].any()
    assert list(verdict.pseudo_labels) == ["1", "2", None, "4"]


def test_it_reports_the_votes_at_hand():
    verdict, voted = (
        offline(EXACT, exact)(ROWS, TEXTS, 0),
        majority_vote(EXACT, exact)(ROWS, TEXTS, 0),
    )
    assert verdict.votes == voted.votes and verdict.answers == voted.answers
    np.testing.assert_array_equal(verdict.majority_fraction_R, voted.majority_fraction_R)


def test_gold_is_neither_needed_nor_seen():
    judge, needs_gold = make_judge("offline", EXACT, exact, threshold=0.6, trained=3)
    assert not needs_gold  # so the trainer hides it, and the label stays
    hidden = [r.hide_gold() for r in ROWS]
    assert [(r.gold, r.label) for r in hidden] == [(None, r.label) for r in ROWS]
    other = [row(r.id, r.label, "1") for r in ROWS]
    rewards = [judge(rows, TEXTS, 0).rewards_RxG for rows in (ROWS, hidden, other)]
    np.testing.assert_array_equal(rewards[0], rewards[1])
    np.testing.assert_array_equal(rewards[0], rewards[2])
    assert rewards[0].sum() == 2


def test_where_the_labels_are_gold_it_is_the_ground_truth_judge():
    rows = [row(i, gold, gold) for i, gold in enumerate("1234")]
    ours, theirs = offline(EXACT, exact), ground_truth(EXACT, exact)
    for trained in (None, 2):
        ours, theirs = (make(EXACT, exact, trained=trained) for make in (offline, ground_truth))
        a, b = ours(rows, TEXTS, 0), theirs(rows, TEXTS, 0)
        np.testing.assert_array_equal(a.rewards_RxG, b.rewards_RxG)
        np.testing.assert_array_equal(a.trained_RxG, b.trained_RxG)


def test_equal_in_value_is_enough():
    spec = AnswerSpec(pattern="boxed", equivalence="math")
    with Equivalence("math") as math:
        texts = [["\\boxed{0.5}", "\\boxed{\\frac{2}{4}}", "\\boxed{2}"]]
        verdict = offline(spec, math)([row(0, "\\frac12")], texts, 0)
    assert verdict.rewards_RxG.tolist() == [[1, 1, 0]]


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="not a regular expression"):
        offline(AnswerSpec(pattern="(", equivalence="exact"), exact)
    with pytest.raises(UserError, match="is 5, of 4"):
        offline(EXACT, exact, trained=5)(ROWS, TEXTS, 0)
