"""Intervals against published values, hand-worked cases and their own promise of coverage."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.dgm.archive import Evaluation
from selfevolve_jax.dgm.contract import Usage
from selfevolve_jax.dgm.intervals import difference, rate
from selfevolve_jax.wilson import wilson


def evaluations(rows, groups=None):
    """rows: each task's attempts (1 or 0, or partial credit); groups: each task's."""
    return [
        Evaluation(
            task=f"t{i}",
            seed=n,
            split="train",
            group=groups[i] if groups else f"t{i}",
            solved=value == 1,
            partial=float(value),
            empty=False,
            reason="",
            tests={},
            usage=Usage(),
            cpu_s=0.0,
            wall_s=0.0,
            files="",
        )
        for i, attempts in enumerate(rows)
        for n, value in enumerate(attempts)
    ]


def singles(n_solved, n, groups=None):
    return evaluations([[int(i < n_solved)] for i in range(n)], groups)


def test_wilson_by_hand():
    # n=10, p=0: high = z²/(n + z²) = 3.8415/13.8415 = .27753
    assert wilson(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1), abs=1e-5)
    # Newcombe (1998), table I: 81 of 263 -> .2553 to .3662; 15 of 148 -> .0624 to .1605
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 0) == (0, 1)
    assert wilson(5, 10, level=0.5)[0] > wilson(5, 10)[0]


def test_without_repeated_groups_it_is_wilson():
    shown = rate(singles(81, 263))
    assert (shown.low, shown.high) == wilson(81, 263)
    assert shown.mean == 81 / 263 and shown.tasks == 263
    # One group for all says nothing about how groups differ.
    assert rate(singles(81, 263, ["python"] * 263)) == shown


def test_groups_that_agree_within_count_once():
    """Six groups of four, three solved wholly and three not at all. x - mean is ±1/2.
    Single: 24 · 1/4 · 24/23 = 6.2609; whole: 6 · (4 · 1/2)² · 6/5 = 28.8. Effect 4.6. So 24 tasks weigh
    as n = 5.2174, with t(5) = 2.5706: middle 1/2; reach = t/(1 + t²/n) · sqrt(1/(4n) + t²/(4n²)), with
    t²/n = 1.26652 it is 1/2 · sqrt(1.26652/2.26652) = .37377."""
    groups = [f"g{i // 4}" for i in range(24)]
    shown = rate(singles(12, 24, groups))
    assert (shown.low, shown.high) == pytest.approx((0.12623, 0.87377), abs=1e-4)


def test_groups_that_differ_inside_and_not_between_are_no_narrower_than_single_tasks():
    """Effect 0/… counts as 1; t(5) instead of z alone widens it."""
    groups = [f"g{i % 6}" for i in range(24)]
    shown = rate(singles(12, 24, groups))
    # t²/n = 6.60790/24 = .27533: 1/2 · sqrt(.27533/1.27533) = .23232
    assert (shown.low, shown.high) == pytest.approx((0.26768, 0.73232), abs=1e-4)


def test_where_all_agree_it_still_has_a_width():
    groups = [f"g{i // 4}" for i in range(24)]
    shown = rate(singles(0, 24, groups))
    # 24 tasks weigh as 6: t²/(6 + t²) = 6.60790/12.60790
    assert (shown.low, shown.high) == pytest.approx((0, 0.52411), abs=1e-4)


def test_repeats_are_averaged_first():
    # Tasks: 1/2, 1, 0: mean 1/2, and three tasks, not six tries.
    shown = rate(evaluations([[1, 0], [1, 1], [0, 0]]))
    assert (shown.mean, shown.tasks) == (0.5, 3)
    assert (shown.low, shown.high) == wilson(1.5, 3)
    assert rate(evaluations([[0.5], [0.25]]), "partial").mean == 0.375
    assert rate(evaluations([[0.5], [0.25]])).mean == 0
    with pytest.raises(ValueError):
        rate([])


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abcde")), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_it_holds_the_mean_and_its_mirror_image(rows, rng):
    values, groups = [[v] for v, _ in rows], [g for _, g in rows]
    given_ = evaluations(values, groups)
    shown = rate(given_)
    assert 0 <= shown.low <= shown.mean <= shown.high <= 1 and shown.low < shown.high
    other = rate(evaluations([[1 - v] for [v] in values], groups))
    assert (1 - other.high, 1 - other.low) == pytest.approx((shown.low, shown.high))
    mixed = rate(rng.sample(given_, len(given_)))
    assert (mixed.low, mixed.high) == pytest.approx((shown.low, shown.high))


def clustered(rng, groups=15, each=8):
    """Tasks whose groups have rates of their own, 0.3 in the mean, and the groups' names."""
    rates = [rng.betavariate(0.9, 2.1) for _ in range(groups)]
    names = [f"g{g}" for g in range(groups) for _ in range(each)]
    return [[int(rng.random() < rates[g])] for g in range(groups) for _ in range(each)], names


def test_it_covers_the_truth_where_tasks_cluster_and_plain_wilson_does_not():
    rng, hits, plain = random.Random(3), 0, 0
    for _ in range(400):
        rows, names = clustered(rng)
        shown = rate(evaluations(rows, names))
        hits += shown.low <= 0.3 <= shown.high
        low, high = wilson(sum(v for [v] in rows), len(rows))
        plain += low <= 0.3 <= high
    # 95% of 400 has a standard error of 1.1%.
    assert hits / 400 >= 0.92
    assert plain / 400 < 0.85


# The difference of two agents


def test_a_difference_by_hand():
    # Of 20 tasks, 6 are gained and 1 is lost: .3 (Wilson .1455 to .5190) less .05 (.0089 to .2361).
    # Correlation: sqrt(.3 · .05 / (.7 · .95)) = .15019, twice it .30038.
    # Low: distances .1545 and .1861: .25 - sqrt(.02387 + .03463 + .30038 · .02875) = .25 - .25911.
    # High: .2190 and .0411: .25 + sqrt(.04796 + .00169 + .30038 · .00900) = .25 + .2288.
    before = evaluations([[0]] * 6 + [[1]] + [[1]] * 5 + [[0]] * 8)
    after = evaluations([[1]] * 6 + [[0]] + [[1]] * 5 + [[0]] * 8)
    shown = difference(before, after)
    assert shown.mean == 0.25 and shown.tasks == 20
    assert (shown.low, shown.high) == pytest.approx((-0.0091, 0.4788), abs=2e-4)
    back = difference(after, before)
    assert (-back.high, -back.low, -back.mean) == pytest.approx((shown.low, shown.high, shown.mean))


def test_only_shared_tasks_count():
    before, after = singles(0, 10), singles(15, 20)
    assert difference(before, after).tasks == 10 and difference(before, after).mean == 1
    with pytest.raises(ValueError, match="share no task"):
        difference(before, after[10:])


def test_agents_that_agree_everywhere_differ_by_zero_with_a_width():
    # None of 10 gained, none lost: z²/(10 + z²) either way
    shown = difference(singles(4, 10), singles(4, 10))
    assert shown.mean == 0
    assert (shown.low, shown.high) == pytest.approx((-0.27753, 0.27753), abs=1e-5)


@given(
    st.lists(st.tuples(*[st.integers(0, 4)] * 2, st.sampled_from("abcd")), min_size=1, max_size=30)
)
def test_a_difference_holds_its_mean_and_turns_round(rows):
    """Partial credit in quarters."""
    groups = [g for _, _, g in rows]
    first = evaluations([[a / 4] for a, _, _ in rows], groups)
    second = evaluations([[b / 4] for _, b, _ in rows], groups)
    shown, back = (difference(*pair, "partial") for pair in ((first, second), (second, first)))
    assert -1 <= shown.low <= shown.mean + 1e-9 and shown.mean - 1e-9 <= shown.high <= 1
    assert shown.low < shown.high
    expected = rate(second, "partial").mean - rate(first, "partial").mean
    assert shown.mean == pytest.approx(expected, abs=1e-9)
    assert (-back.high, -back.low) == pytest.approx((shown.low, shown.high), abs=1e-9)


def test_pairing_pays():
    """Both agents fail at the same hard tasks: the paired interval is narrower than the rates' own."""
    shown = difference(singles(30, 60), singles(36, 60))
    assert shown.low > 0
    assert rate(singles(30, 60)).high > rate(singles(36, 60)).low


@pytest.mark.parametrize("kept", [1.0, 0.8])
def test_a_difference_covers_the_truth(kept):
    """Of 30% solved tasks the second agent keeps a share; of the others it gains a tenth or half, by
    group: 30% in the mean."""
    rng, hits = random.Random(4), 0
    truth = 0.3 * (kept - 1) + 0.7 * 0.3
    for _ in range(400):
        before, names = clustered(rng)
        chance = {g: rng.choice([0.1, 0.5]) for g in dict.fromkeys(names)}
        after = [
            [int(rng.random() < (kept if v else chance[g]))]
            for [v], g in zip(before, names, strict=True)
        ]
        shown = difference(evaluations(before, names), evaluations(after, names))
        hits += shown.low <= truth <= shown.high
    assert hits / 400 >= 0.92
