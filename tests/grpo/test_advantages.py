import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selfevolve_jax.grpo.advantages import ADVANTAGES, EPS

SHAPE = (3, 4)
COMPILED = {kind: jax.jit(f) for kind, f in ADVANTAGES.items()}


def advantages(kind, rewards, mask=None):
    rewards = np.asarray(rewards, np.float32)
    mask = np.ones(rewards.shape, bool) if mask is None else np.asarray(mask, bool)
    return np.asarray(COMPILED[kind](rewards, mask))


def by_hand(kind, rewards, mask):
    """The published formulas over plain lists, sample by sample."""
    out = np.zeros(rewards.shape)
    for r, row in enumerate(rewards.astype(np.float64)):
        kept = row[mask[r]]
        for g in np.flatnonzero(mask[r]):
            if kind == "rloo":
                others = np.delete(row, g)[np.delete(mask[r], g)]
                out[r, g] = row[g] - others.mean() if others.size else 0.0
            elif kind == "grpo":
                spread = kept.std(ddof=1) if kept.size > 1 else 0.0
                out[r, g] = (row[g] - kept.mean()) / (spread + EPS)
            elif kind == "reinforce++":
                out[r, g] = row[g]
            else:
                out[r, g] = row[g] - kept.mean()
    if kind.startswith("reinforce++") and mask.any():
        out = np.where(mask, (out - out[mask].mean()) / (out[mask].std() + EPS), 0.0)
    return out


# Rewards 1, 0, 0, 3 (mean 1, sample variance 2) and 1, 1, 1, 5 (mean 2, sample variance 4).
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dr_grpo", [[0, -1, -1, 2], [-1, -1, -1, 3]]),
        ("grpo", [[0, -(2**-0.5), -(2**-0.5), 2**0.5], [-0.5, -0.5, -0.5, 1.5]]),
        ("rloo", [[0, -4 / 3, -4 / 3, 8 / 3], [-4 / 3, -4 / 3, -4 / 3, 4]]),
        # Over all eight: mean 1.5, population variance 37/8 - 9/4 = 2.5.
        (
            "reinforce++",
            np.array([[-0.5, -1.5, -1.5, 1.5], [-0.5, -0.5, -0.5, 3.5]]) / np.sqrt(2.5),
        ),
        # Centred by group first, so the mean is 0 and the variance (0+1+1+4+1+1+1+9)/8 = 2.25.
        ("reinforce++_baseline", np.array([[0, -1, -1, 2], [-1, -1, -1, 3]]) / 1.5),
    ],
)
def test_values_worked_out_by_hand(kind, expected):
    rewards = [[1, 0, 0, 3], [1, 1, 1, 5]]
    np.testing.assert_allclose(advantages(kind, rewards), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_masked_samples_count_in_no_mean_no_deviation_and_no_number(kind):
    """A group with masked samples gives its others what the smaller group would give them."""
    mask = np.array([[1, 0, 1, 1], [1, 1, 1, 0]], bool)
    got = advantages(kind, [[1, 99, 0, 3], [2, 0, 5, -99]], mask)
    alone = advantages(kind, [[1, 0, 3], [2, 0, 5]])
    np.testing.assert_allclose(got[mask], alone.reshape(-1), rtol=1e-6)
    assert np.all(got[~mask] == 0)
    junk = advantages(kind, [[1, np.nan, 0, 3], [2, 0, 5, np.inf]], mask)
    np.testing.assert_array_equal(junk, got)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo", "reinforce++_baseline"])
def test_a_lone_sample_has_nothing_to_be_compared_with(kind):
    mask = [[1, 0, 0], [1, 1, 1]]
    got = advantages(kind, [[7, 1, 1], [0, 1, 2]], mask)
    np.testing.assert_array_equal(got[0], 0)
    assert np.ptp(got[1]) > 1


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_equal_rewards_and_empty_masks_give_zero(kind):
    np.testing.assert_array_equal(advantages(kind, np.ones(SHAPE)), 0)
    np.testing.assert_array_equal(advantages(kind, np.ones(SHAPE), np.zeros(SHAPE)), 0)


rewards_strategy = hnp.arrays(np.float32, SHAPE, elements=st.integers(-8, 8).map(lambda x: x / 4))


@settings(max_examples=40)
@given(rewards=rewards_strategy, mask=hnp.arrays(bool, SHAPE))
def test_ragged_masks_agree_with_plain_numpy(rewards, mask):
    for kind in ADVANTAGES:
        np.testing.assert_allclose(
            advantages(kind, rewards, mask), by_hand(kind, rewards, mask), atol=1e-4, err_msg=kind
        )


@settings(max_examples=20)
@given(rewards=rewards_strategy, mask=hnp.arrays(bool, SHAPE), seed=st.integers(0, 99))
def test_the_order_of_samples_and_of_rows_does_not_matter(rewards, mask, seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(SHAPE[0])[:, None], rng.permutation(SHAPE[1])
    for kind in ADVANTAGES:
        shuffled = advantages(kind, rewards[rows, columns], mask[rows, columns])
        np.testing.assert_allclose(
            shuffled, advantages(kind, rewards, mask)[rows, columns], atol=1e-5, err_msg=kind
        )
