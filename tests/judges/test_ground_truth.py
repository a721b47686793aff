import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.ground_truth import grade, ground_truth, label_accuracy
from selfevolve_jax.judges.vote import majority_vote
from selfevolve_jax.tasks.base import AnswerSpec, Row

EXACT = AnswerSpec(equivalence="exact")
exact = Equivalence("exact")


@pytest.fixture(scope="module")
def math():
    with Equivalence("math", time_limit_s=1.5) as equivalence:
        yield equivalence


def row(id, gold):
    return Row(id=id, prompt="?", prompt_tokens=(), gold=gold)


def box(*answers):
    return ["no answer" if a is None else f"so \\boxed{{{a}}}" for a in answers]


TEXTS = [box("1", "2", "2", None), box(None, None, None, None), box("7", "8", "9", "7")]
ROWS = [row(4, "1"), row(5, "3"), row(6, " 7 ")]


def test_rewards_follow_gold_and_not_the_vote():
    verdict = ground_truth(EXACT, exact)(ROWS, TEXTS, 0)
    np.testing.assert_array_equal(
        verdict.rewards_RxG, np.float32([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]])
    )
    assert verdict.trained_RxG.all()  # no right answer in a group is knowledge, not a guess
    assert list(verdict.pseudo_labels) == ["1", "3", "7"]
    assert [dict(v) for v in verdict.votes] == [{"2": 2, "1": 1}, {}, {"7": 2, "8": 1, "9": 1}]
    np.testing.assert_array_equal(verdict.majority_fraction_R, np.float32([0.5, 0, 0.5]))


def test_trained_leaves_the_later_samples_out():
    verdict = ground_truth(EXACT, exact, trained=2)(ROWS, TEXTS, 0)
    assert verdict.trained_RxG.tolist() == [[True, True, False, False]] * 3
    assert verdict.rewards_RxG.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("gold", [None, "", "  "])
def test_a_row_without_gold_is_named(gold):
    with pytest.raises(UserError, match="row 17 has no gold"):
        ground_truth(EXACT, exact)([row(3, "1"), row(17, gold)], [box("1"), box("1")], 0)
    with pytest.raises(UserError, match="row 17 has no gold"):
        grade([row(17, gold)], [box("1")], EXACT, exact)


def test_each_sample_is_graded_itself_and_not_through_its_cluster(math):
    # 28% speaks for a cluster that holds 28 and 0.28, which differ.
    texts = [box("28%", "28%", "28", "0.28")]
    grades = grade([row(0, "0.28")], texts, AnswerSpec(), math)
    assert grades.correct_RxG.tolist() == [[True, True, False, True]]
    assert grades.majority_correct_R.tolist() == [True]
    verdict = ground_truth(AnswerSpec(), math)([row(0, "0.28")], texts, 0)
    assert verdict.rewards_RxG.tolist() == [[1, 1, 0, 1]]


def test_grade():
    grades = grade(ROWS, TEXTS, EXACT, exact)
    assert grades.correct_RxG.tolist() == [
        [True, False, False, False],
        [False] * 4,
        [True, False, False, True],
    ]
    assert grades.correct_RxG.dtype == bool
    assert grades.majority_correct_R.tolist() == [False, False, True]
    assert grades.majority_correct_R.dtype == bool
    assert grades.tally.answers[0] == ["1", "2", "2", None]
    assert grades.tally.winners == ["2", None, "7"]
    assert grades.timeouts == 0


def test_timeouts_against_gold_are_counted_once(math):
    # One answer throughout, so that the vote asks nothing and only gold is compared.
    texts = [box("10^{10^{10}}", "10^{10^{10}}")]
    verdict = ground_truth(AnswerSpec(), math)([row(0, "5")], texts, 0)
    assert verdict.timeouts == 1
    assert not verdict.rewards_RxG.any()


def test_label_accuracy(math):
    rows = [*ROWS, row(7, None), row(8, "2")]
    texts = [*TEXTS, box("1", "1", "1", "1"), box("2", "2", "1", "1")]
    verdict = majority_vote(EXACT, exact)([r.hide_gold() for r in rows], texts, 0)
    accuracy = label_accuracy(rows, verdict, exact)
    np.testing.assert_array_equal(accuracy, np.float32([0, 0, 1, np.nan, 1]))
    rows = [row(0, r"\frac{1}{2}")]
    verdict = majority_vote(AnswerSpec(), math)(rows, [box("0.5")], 0)
    assert label_accuracy(rows, verdict, math).tolist() == [1]


def test_label_accuracy_where_no_row_has_gold():
    rows = [row(0, None)]
    verdict = majority_vote(EXACT, exact)(rows, [box("1")], 0)
    assert np.isnan(label_accuracy(rows, verdict, exact)).tolist() == [True]
