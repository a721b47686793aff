from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.advantages import grpo
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.vote import empo, majority_vote, soft_majority
from selfevolve_jax.tasks.base import AnswerSpec, Row

EXACT = AnswerSpec(pattern="boxed", equivalence="exact")
exact = Equivalence("exact")


@pytest.fixture(scope="module")
def math():
    with Equivalence("math", time_limit_s=1.5) as equivalence:
        yield equivalence


@dataclass(frozen=True)
class GoldIsPoison:
    """A row that fails the test when anyone looks for the gold answer."""

    id: int
    prompt: str = "?"
    prompt_tokens: tuple = ()

    @property
    def gold(self):
        raise AssertionError("a label-free judge has read gold")

    extra = gold


def box(*answers):
    return ["no answer" if a is None else f"so \\boxed{{{a}}}" for a in answers]


def rows(n):
    return [GoldIsPoison(i) for i in range(n)]


def test_votes_worked_by_hand():
    texts = [box("1", "2", "2", None), box("7", "7", "7", "7"), box("a", "b", None, "c")]
    verdict = majority_vote(EXACT, exact)(rows(3), texts, 0)
    np.testing.assert_array_equal(
        verdict.rewards_RxG, np.array([[0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.float32)
    )
    assert verdict.rewards_RxG.dtype == np.float32
    assert verdict.trained_RxG.all() and verdict.trained_RxG.dtype == bool
    assert verdict.answers == [["1", "2", "2", None], ["7"] * 4, ["a", "b", None, "c"]]
    assert list(verdict.pseudo_labels) == ["2", "7", "a"]
    assert [list(v.items()) for v in verdict.votes] == [
        [("2", 2), ("1", 1)],
        [("7", 4)],
        [("a", 1), ("b", 1), ("c", 1)],
    ]
    np.testing.assert_array_equal(verdict.majority_fraction_R, np.float32([0.5, 1, 0.25]))
    assert verdict.timeouts == 0


def test_soft_majority_worked_by_hand():
    texts = [box("1", "2", "2", None), box("3", "4", "4", "3")]
    verdict = soft_majority(EXACT, exact)(rows(2), texts, 0)
    np.testing.assert_array_equal(
        verdict.rewards_RxG, np.float32([[0.25, 0.5, 0.5, 0], [0.5, 0.5, 0.5, 0.5]])
    )
    assert list(verdict.pseudo_labels) == ["2", "3"]


def test_empo_worked_by_hand():
    """The entropy of a group where no two agree is log G, an unparsable sample counting as one more
    opinion; anything below keeps the cluster frequencies."""
    texts = [
        box("1", "2", "2", None),
        box("1", "2", "3", "4"),
        box("1", "2", "3", None),
        box(*"5555"),
    ]
    verdict = empo(EXACT, exact)(rows(4), texts, 0)
    np.testing.assert_array_equal(
        verdict.rewards_RxG, np.float32([[0.25, 0.5, 0.5, 0], [0] * 4, [0] * 4, [1] * 4])
    )
    assert verdict.trained_RxG.all()
    assert list(verdict.pseudo_labels) == ["2", "1", "1", "5"]


def test_ttrl_trains_on_the_first_32_and_lets_64_vote():
    """The first 32 alone would elect 1. Advantages are over the 32 (arXiv 2504.16084)."""
    answers = ["1"] * 20 + ["2"] * 12 + ["2"] * 20 + ["3"] * 12
    verdict = majority_vote(EXACT, exact, trained=32)(rows(1), [box(*answers)], 0)
    assert verdict.pseudo_labels[0] == "2" and verdict.majority_fraction_R[0] == 0.5
    want = np.float32([0] * 20 + [1] * 12)
    np.testing.assert_array_equal(verdict.rewards_RxG[0, :32], want)
    assert verdict.trained_RxG[0].tolist() == [True] * 32 + [False] * 32
    advantages = np.asarray(grpo(verdict.rewards_RxG, verdict.trained_RxG))[0]
    np.testing.assert_allclose(
        advantages[:32], (want - want.mean()) / (want.std(ddof=1) + 1e-6), rtol=1e-5
    )
    assert not advantages[32:].any()


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["b", "a", "a", "b"], "b"),
        ([None, "a", "b", "b", "a"], "a"),
        # c leads neither alone nor by position; a and b tie, and b was seen first.
        (["c", "b", "a", "a", "b"], "b"),
    ],
)
def test_a_tie_goes_to_the_cluster_seen_first(answers, winner):
    verdict = majority_vote(EXACT, exact)(rows(1), [box(*answers)], 0)
    assert verdict.pseudo_labels[0] == winner
    assert verdict.rewards_RxG[0].tolist() == [float(a == winner) for a in answers]


def test_a_tie_is_between_clusters_and_not_between_spellings(math):
    # {1/2, 0.5} and {3} have two votes each; 3 is the more frequent string, yet 0.5 came first.
    spec = AnswerSpec()
    verdict = majority_vote(spec, math)(rows(1), [box("0.5", "3", "1/2", "3")], 0)
    assert verdict.rewards_RxG[0].tolist() == [1, 0, 1, 0]
    assert verdict.pseudo_labels[0] == "0.5"
    # The most frequent spelling speaks for its cluster; every member earns, as it voted.
    texts = [box("1/2", "0.5", "3", "0.5", "3")]
    verdict = majority_vote(spec, math)(rows(1), texts, 0)
    assert verdict.rewards_RxG[0].tolist() == [1, 1, 0, 1, 0]
    assert dict(verdict.votes[0]) == {"0.5": 3, "3": 2}


def test_membership_earns_even_where_equality_is_not_transitive(math):
    texts = [box("28", "0.28", "28%", "0.28", "28")]
    verdict = majority_vote(AnswerSpec(), math)(rows(1), texts, 0)
    # 28% equals 0.28 too, but it voted for 28.
    assert verdict.rewards_RxG[0].tolist() == [1, 0, 1, 0, 1]
    assert dict(verdict.votes[0]) == {"28": 3, "0.28": 2}


def test_hostile_samples_are_counted_and_vote_only_for_themselves(math):
    texts = [box("10^{10^{10}}", "1/2", "0.5")]
    verdict = majority_vote(AnswerSpec(), math)(rows(1), texts, 0)
    assert verdict.rewards_RxG[0].tolist() == [0, 1, 1]
    assert verdict.timeouts == 1


@pytest.mark.parametrize("make", [majority_vote, soft_majority, empo])
def test_a_group_without_an_answer_leaves_the_loss(make):
    texts = [box(None, None, None), box("1", None, None), ["\\boxed{}", "\\boxed{ }", "\\boxed{"]]
    verdict = make(EXACT, exact)(rows(3), texts, 0)
    assert verdict.trained_RxG.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert not verdict.rewards_RxG[[0, 2]].any()
    assert list(verdict.pseudo_labels) == [None, "1", None]
    assert [dict(v) for v in verdict.votes] == [{}, {"1": 1}, {}]
    np.testing.assert_array_equal(verdict.majority_fraction_R, np.float32([0, 1 / 3, 0]))


@pytest.mark.parametrize("make", [majority_vote, soft_majority, empo])
def test_a_group_under_the_threshold_leaves_but_keeps_its_label(make):
    texts = [box("1", "1", "1", "2", "3"), box("1", "1", "2", "3", "4"), box(*"11111")]
    verdict = make(EXACT, exact, threshold=0.6)(rows(3), texts, 0)
    assert verdict.trained_RxG.tolist() == [[True] * 5, [False] * 5, [True] * 5]  # 3/5 is not below
    assert not verdict.rewards_RxG[1].any()
    assert verdict.rewards_RxG[0].any()
    assert list(verdict.pseudo_labels) == ["1", "1", "1"]


@pytest.mark.parametrize("make", [majority_vote, soft_majority, empo])
def test_more_votes_than_trained_samples(make):
    # The first two alone would elect 1; all five elect 2.
    texts = [box("1", "1", "2", "2", "2")]
    verdict = make(EXACT, exact, trained=2)(rows(1), texts, 0)
    assert verdict.trained_RxG.tolist() == [[True, True, False, False, False]]
    assert verdict.pseudo_labels[0] == "2"
    assert verdict.majority_fraction_R[0] == np.float32(0.6)
    expected = [0, 0] if make is majority_vote else [0.4, 0.4]  # of all votes, not of the trained
    np.testing.assert_array_equal(verdict.rewards_RxG, np.float32([[*expected, 0, 0, 0]]))


@pytest.mark.parametrize("trained", [0, -1, 4])
def test_a_number_of_trained_samples_that_cannot_be(trained):
    with pytest.raises(UserError, match=f"{trained}.*3"):
        majority_vote(EXACT, exact, trained=trained)(rows(1), [box("1", "1", "2")], 0)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_that_cannot_be(threshold):
    with pytest.raises(UserError, match="threshold"):
        majority_vote(EXACT, exact, threshold=threshold)


def test_a_bad_pattern_is_refused_before_the_first_rollout():
    with pytest.raises(UserError, match="regular expression"):
        majority_vote(replace(EXACT, pattern="("), exact)


def test_an_equivalence_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="exact"):
        majority_vote(AnswerSpec(equivalence="math"), exact)(rows(1), [box("1")], 0)


def test_ragged_groups_are_refused():
    with pytest.raises(ValueError, match="same number"):
        majority_vote(EXACT, exact)(rows(2), [box("1"), box("1", "2")], 0)


groups = st.lists(st.sampled_from([None, "1", "2", "3", "4"]), min_size=1, max_size=10)


@given(answers=groups, data=st.data(), make=st.sampled_from([majority_vote, soft_majority, empo]))
def test_permuting_samples_permutes_rewards(answers, data, make):
    counts = sorted((answers.count(a) for a in set(answers) - {None}), reverse=True)
    assume(len(counts) < 2 or counts[0] > counts[1])
    order = data.draw(st.permutations(range(len(answers))))
    judge = make(EXACT, exact)
    straight = judge(rows(1), [box(*answers)], 0)
    permuted = judge(rows(1), [box(*(answers[i] for i in order))], 0)
    np.testing.assert_array_equal(permuted.rewards_RxG[0], straight.rewards_RxG[0][order])
    assert permuted.pseudo_labels == straight.pseudo_labels
    assert dict(permuted.votes[0]) == dict(straight.votes[0])
    np.testing.assert_array_equal(permuted.majority_fraction_R, straight.majority_fraction_R)


@given(batch=st.lists(groups.filter(lambda g: len(g) >= 3).map(lambda g: g[:3]), max_size=5))
def test_rows_are_judged_alone_whatever_their_text(batch):
    judge = majority_vote(EXACT, exact)
    texts = [box(*g) for g in batch]
    same_prompt = [
        Row(id=i, prompt="the same", prompt_tokens=(), gold="1") for i in range(len(batch))
    ]
    together = judge(same_prompt, texts, 0)
    other = judge([replace(r, prompt=f"p{r.id}", gold=None) for r in same_prompt], texts, 5)
    np.testing.assert_array_equal(together.rewards_RxG, other.rewards_RxG)
    for i, text in enumerate(texts):
        alone = judge(rows(1), [text], 0)
        np.testing.assert_array_equal(together.rewards_RxG[i], alone.rewards_RxG[0])
        assert together.pseudo_labels[i] == alone.pseudo_labels[0]


@given(answers=groups)
def test_the_count_of_every_vote_adds_up(answers):
    verdict = majority_vote(EXACT, exact)(rows(1), [box(*answers)], 0)
    votes = verdict.votes[0]
    assert sum(votes.values()) == sum(a is not None for a in answers)
    winner = max(votes.values(), default=0)
    assert verdict.rewards_RxG.sum() == winner
    assert verdict.majority_fraction_R[0] == np.float32(winner / len(answers))


@given(answers=groups)
def test_empo_is_the_cluster_frequency_below_the_largest_entropy(answers):
    judged = empo(EXACT, exact)(rows(1), [box(*answers)], 0)
    soft = soft_majority(EXACT, exact)(rows(1), [box(*answers)], 0)
    # An unparsable sample is a cluster by itself.
    counts = [*judged.votes[0].values(), *(1 for a in answers if a is None)]
    shares = np.array(counts) / len(answers)
    entropy = -(shares * np.log(shares)).sum()
    below = entropy < np.log(len(answers)) - 1e-9
    np.testing.assert_array_equal(judged.rewards_RxG, soft.rewards_RxG * below)
    np.testing.assert_array_equal(judged.trained_RxG, soft.trained_RxG)
