import numpy as np

from selfevolve_jax.judges.controls import format_only, random_reward
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.vote import majority_vote
from selfevolve_jax.tasks.base import AnswerSpec, Row

EXACT = AnswerSpec(equivalence="exact")
exact = Equivalence("exact")


def row(id):
    return Row(id=id, prompt="?", prompt_tokens=())


def box(*answers):
    return ["no answer" if a is None else f"so \\boxed{{{a}}}" for a in answers]


def test_random_reward_is_a_fair_coin_that_ignores_the_text():
    judge = random_reward(EXACT, exact, seed=3)
    rows = [row(i) for i in range(200)]
    right = judge(rows, [["\\boxed{1}"] * 50] * 200, 7)
    wrong = judge(rows, [["no answer"] * 50] * 200, 7)
    np.testing.assert_array_equal(right.rewards_RxG, wrong.rewards_RxG)
    assert set(np.unique(right.rewards_RxG)) == {0.0, 1.0}
    assert right.trained_RxG.all() and wrong.trained_RxG.all()
    # 10,000 draws: the standard error is 0.005; five of them.
    assert abs(right.rewards_RxG.mean() - 0.5) < 0.025
    # No row, sample or neighbour repeats another: correlations of fair coins are near 0.
    assert len({r.tobytes() for r in right.rewards_RxG}) == 200
    assert len({c.tobytes() for c in right.rewards_RxG.T}) == 50


def test_random_reward_depends_on_seed_step_row_and_sample_alone():
    texts = [box(*"1" * 32)] * 3

    def rewards(seed, step, ids, group=32):
        judge = random_reward(EXACT, exact, seed=seed)
        return judge(
            [row(i) for i in ids], [t[:group] for t in texts[: len(ids)]], step
        ).rewards_RxG

    base = rewards(0, 0, [5, 6, 7])
    np.testing.assert_array_equal(rewards(0, 0, [7, 5, 6]), base[[2, 0, 1]])
    np.testing.assert_array_equal(rewards(0, 0, [6]), base[1:2])
    np.testing.assert_array_equal(rewards(0, 0, [5, 6, 7], group=8), base[:, :8])
    for other in (rewards(1, 0, [5, 6, 7]), rewards(0, 1, [5, 6, 7]), rewards(0, 0, [6, 7, 5])):
        assert (other != base).any(axis=1).all()


def test_a_row_that_comes_again_gets_other_coins():
    texts = [box(*"1" * 32)] * 4
    judge = random_reward(EXACT, exact, seed=0)
    rewards = judge([row(5), row(6), row(5), row(5)], texts, 0).rewards_RxG
    assert len({r.tobytes() for r in rewards}) == 4
    np.testing.assert_array_equal(rewards[:2], judge([row(5), row(6)], texts[:2], 0).rewards_RxG)


def test_format_only_rewards_any_answer():
    verdict = format_only(EXACT, exact)(
        [row(0), row(1)], [box("1", "2", None), box(None, None, None)], 0
    )
    np.testing.assert_array_equal(verdict.rewards_RxG, np.float32([[1, 1, 0], [0, 0, 0]]))
    assert verdict.trained_RxG.all()


def test_controls_report_the_same_votes_as_the_vote():
    rows, texts = [row(0), row(1)], [box("1", "2", "2", None), box(None, "3", "3", "3")]
    voted = majority_vote(EXACT, exact)(rows, texts, 0)
    for judge in (random_reward(EXACT, exact, seed=0), format_only(EXACT, exact)):
        verdict = judge(rows, texts, 0)
        assert verdict.votes == voted.votes
        assert verdict.pseudo_labels == voted.pseudo_labels
        assert verdict.answers == voted.answers
        np.testing.assert_array_equal(verdict.majority_fraction_R, voted.majority_fraction_R)


def test_controls_train_on_the_first_samples_where_asked():
    texts = [box("1", "1", "1", "1")]
    for judge in (
        random_reward(EXACT, exact, seed=1, trained=3),
        format_only(EXACT, exact, trained=3),
    ):
        verdict = judge([row(0)], texts, 0)
        assert verdict.trained_RxG.tolist() == [[True, True, True, False]]
        assert verdict.rewards_RxG[0, 3] == 0
