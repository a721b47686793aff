"""Intervals against worked-out cases and their own promise of coverage; pass@j against counting."""

import itertools

import numpy as np
import pytest

from selfevolve_jax import bootstrap
from selfevolve_jax.bootstrap import intervals, pass_at
from selfevolve_jax.errors import UserError


def one(values, seed=0, **options):
    return intervals(np.asarray(values)[:, None], seed, **options)[0]


def test_intervals_that_can_be_worked_out():
    # Means of two problems drawn from {0, 1} are 0, ½, 1 with chances ¼, ½, ¼: 2.5% is within the ends.
    assert one([0, 1]).tolist() == [0, 1]
    # At a level of 0.4 the ends are the 30th and 70th percentile: both in the middle half.
    assert one([0, 1], level=0.4).tolist() == [0.5, 0.5]
    assert one([0.3]).tolist() == [0.3, 0.3]
    assert one([1, 1, 1, 1]).tolist() == [1, 1]


def test_a_large_sample_has_the_normal_interval():
    """Half of 400 right: 0.5 ± 1.96 · 0.5 / 20 = ±0.049; a mean moves in steps of 0.0025."""
    low, high = one([0, 1] * 200)
    assert low == pytest.approx(0.451, abs=0.005) and high == pytest.approx(0.549, abs=0.005)


def test_it_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(7)
    truth, hits = 0.3, 0
    for trial in range(300):
        low, high = one(rng.random(60) < truth, trial, resamples=400)
        hits += low <= truth <= high
    # 95% of 300 has a standard error of 1.3%; the percentile method falls a little short.
    assert 0.89 <= hits / 300 <= 0.98


def test_scaling_shifting_and_company_change_nothing():
    values = np.random.default_rng(0).random(37)
    alone = one(values)
    np.testing.assert_allclose(one(2 * values + 1), 2 * alone + 1, rtol=1e-12)
    both = intervals(np.stack([values, 1 - values], axis=1), 0)
    np.testing.assert_array_equal(both[0], alone)
    np.testing.assert_allclose(both[1], 1 - alone[::-1], rtol=1e-12)
    assert (one(values, seed=1) != alone).any()


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    values = np.random.default_rng(1).random(23)
    whole = one(values, resamples=1000)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 23 * 7)
    np.testing.assert_array_equal(one(values, resamples=1000), whole)


@pytest.mark.parametrize(("n", "j"), [(1, 1), (5, 1), (5, 2), (6, 4), (6, 6)])
def test_pass_at_is_the_share_of_subsets_with_a_right_one(n, j):
    for c in range(n + 1):
        marks = [True] * c + [False] * (n - c)
        subsets = list(itertools.combinations(marks, j))
        expected = sum(map(any, subsets)) / len(subsets)
        assert pass_at(np.array([c]), n, j)[0] == pytest.approx(expected, abs=1e-15)


def test_pass_at_the_ends():
    c = np.array([0, 1, 3, 8])
    np.testing.assert_array_equal(pass_at(c, 8, 8), [0, 1, 1, 1])
    np.testing.assert_allclose(pass_at(c, 8, 1), c / 8)
    # 1024 samples: the binomials are beyond any float, the quotient is exact.
    assert pass_at(np.array([1]), 1024, 512)[0] == 0.5


@pytest.mark.parametrize("j", [0, 9])
def test_pass_at_more_than_there_are_is_refused(j):
    with pytest.raises(UserError, match=f"pass@{j}.*between 1 and 8"):
        pass_at(np.array([1]), 8, j)
