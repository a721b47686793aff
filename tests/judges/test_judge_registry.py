import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.registry import JUDGES, NEEDS_PAIRS, NEEDS_STATS, make_judge
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import AnswerSpec, Row

EXACT = AnswerSpec(pattern=r"\S+", equivalence="exact")
ROWS = [Row(id=0, prompt="?", prompt_tokens=(), gold="1"), Row(id=1, prompt="?", prompt_tokens=())]
TEXTS = [["1", "2", "2", ""], ["3", "3", "3", "4"]]


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("majority", [[0, 0, 0, 0], [1, 1, 1, 0]]),
        ("soft_majority", [[0, 0, 0, 0], [0.75, 0.75, 0.75, 0]]),
        ("empo", [[0, 0, 0, 0], [0.75, 0.75, 0.75, 0]]),
        ("evol", [[0, 0, 0, 0], [0.5, 0.5, 0.5, 0]]),
        ("format", [[1, 1, 1, 0], [1, 1, 1, 0]]),
    ],
)
def test_a_judge_by_name_without_gold(name, rewards):
    judge, needs_gold = make_judge(name, EXACT, Equivalence("exact"), threshold=0.6, trained=3)
    assert not needs_gold
    verdict = judge([r.hide_gold() for r in ROWS], TEXTS, 0)
    np.testing.assert_array_equal(verdict.rewards_RxG, np.float32(rewards))


def test_ground_truth_by_name():
    judge, needs_gold = make_judge("ground_truth", EXACT, Equivalence("exact"))
    assert needs_gold
    assert judge(ROWS[:1], TEXTS[:1], 0).rewards_RxG.tolist() == [[1, 0, 0, 0]]


def test_the_random_control_by_name_takes_the_seed():
    texts = [["1"] * 64]
    rewards = [
        make_judge("random", EXACT, Equivalence("exact"), seed=seed)[0](ROWS[:1], texts, 0)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(rewards[0].rewards_RxG, rewards[1].rewards_RxG)
    assert (rewards[0].rewards_RxG != rewards[2].rewards_RxG).any()


def test_the_paired_vote_by_name():
    judge, needs_gold = make_judge("co_reward", EXACT, Equivalence("exact"), threshold=0.6)
    verdict = judge([ROWS[0]] * 2, TEXTS, 0)
    assert not needs_gold
    assert verdict.rewards_RxG.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]  # labelled 3, and left out
    assert verdict.trained_RxG.all(axis=1).tolist() == [True, False]


@pytest.mark.parametrize(("name", "rewards"), [("rent", [-2, -3]), ("self_certainty", [4, 5])])
def test_judges_of_confidence_by_name(name, rewards):
    values = np.float32([[[2], [3]]])
    ones = np.ones((1, 2), np.int32)
    drawn = Samples(np.int32(values), -values, ones, ones > 0, values, values + 2)
    judge, needs_gold = make_judge(name, EXACT, Equivalence("exact"))
    assert not needs_gold
    assert judge(ROWS[:1], [["1", "2"]], 0, drawn).rewards_RxG.tolist() == [rewards]


@pytest.mark.parametrize("name", JUDGES)
def test_only_those_that_say_so_need_more_than_rows_and_texts(name):
    """And a judge that gets statistics without asking takes no notice."""
    judge, _ = make_judge(name, EXACT, Equivalence("exact"))
    if name in NEEDS_STATS:
        with pytest.raises(ValueError, match="stats=True"):
            judge(ROWS[:1], TEXTS[:1], 0)
        return
    rows = [ROWS[0]] * 2
    first, second = judge(rows, TEXTS, 0), judge(rows, TEXTS, 0, None)
    np.testing.assert_array_equal(first.rewards_RxG, second.rewards_RxG)
    if name in NEEDS_PAIRS:
        with pytest.raises(UserError, match="two views"):
            judge(ROWS, TEXTS, 0)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UserError) as caught:
        make_judge("oracle", EXACT, Equivalence("exact"))
    assert all(name in str(caught.value) for name in ("oracle", *JUDGES))
