"""Confidence as a reward: token means by hand, masks, and what the judges must not look at."""

import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.certainty import rent, self_certainty
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.vote import majority_vote
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row

EXACT = AnswerSpec(equivalence="exact")
exact = Equivalence("exact")
ROWS = [Row(id=i, prompt="?", prompt_tokens=()) for i in range(2)]
TEXTS = [["\\boxed{1}", "\\boxed{2}"], ["nothing", "\\boxed{3}"]]
LENGTHS = np.int32([[1, 3], [2, 4]])
ENTROPY = np.float32([[[0.5, 9, 9, 9], [0.1, 0.2, 0.6, 9]], [[1, 2, 9, 9], [0, 0, 0, 1]]])


def drawn(entropy=ENTROPY, certainty=ENTROPY + 2):
    zeros = np.zeros((2, 2, 4), np.int32)
    return Samples(zeros, zeros.astype(np.float32), LENGTHS, LENGTHS > 0, entropy, certainty)


@pytest.mark.parametrize(
    ("make", "rewards"),
    [
        (rent, [[-0.5, -0.3], [-1.5, -0.25]]),
        (self_certainty, [[2.5, 2.3], [3.5, 2.25]]),
    ],
)
def test_the_reward_is_the_mean_over_a_samples_own_tokens(make, rewards):
    """The nines lie beyond the lengths. A sample without an answer is judged like any other."""
    verdict = make(EXACT, exact)(ROWS, TEXTS, 0, drawn())
    np.testing.assert_allclose(verdict.rewards_RxG, rewards, rtol=1e-6)
    assert verdict.rewards_RxG.dtype == np.float32
    assert verdict.trained_RxG.all()
    voted = majority_vote(EXACT, exact)(ROWS, TEXTS, 0)
    assert verdict.votes == voted.votes and verdict.pseudo_labels == voted.pseudo_labels
    np.testing.assert_array_equal(verdict.majority_fraction_R, voted.majority_fraction_R)


def test_nan_beyond_the_length_reaches_no_reward():
    inside = np.arange(4) < LENGTHS[..., None]
    poisoned = np.where(inside, ENTROPY, np.nan)
    verdict = rent(EXACT, exact)(ROWS, TEXTS, 0, drawn(entropy=poisoned))
    np.testing.assert_allclose(verdict.rewards_RxG, [[-0.5, -0.3], [-1.5, -0.25]], rtol=1e-6)


@pytest.mark.parametrize("make", [rent, self_certainty])
def test_the_texts_change_nothing_of_the_reward(make):
    one = make(EXACT, exact)(ROWS, TEXTS, 0, drawn())
    other = make(EXACT, exact)(ROWS, [["x", "x"], ["\\boxed{9}", "y"]], 3, drawn())
    np.testing.assert_array_equal(one.rewards_RxG, other.rewards_RxG)


def test_trained_leaves_the_later_samples_out():
    verdict = self_certainty(EXACT, exact, trained=1)(ROWS, TEXTS, 0, drawn())
    assert verdict.trained_RxG.tolist() == [[True, False]] * 2
    np.testing.assert_allclose(verdict.rewards_RxG, [[2.5, 0], [3.5, 0]])
    with pytest.raises(UserError, match=r"3.*2"):
        self_certainty(EXACT, exact, trained=3)(ROWS, TEXTS, 0, drawn())


@pytest.mark.parametrize("make", [rent, self_certainty])
def test_without_statistics_there_is_no_verdict(make):
    judge = make(EXACT, exact)
    for samples in (None, drawn(entropy=None, certainty=None)):
        with pytest.raises(ValueError, match="stats=True"):
            judge(ROWS, TEXTS, 0, samples)
