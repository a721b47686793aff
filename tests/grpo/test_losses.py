import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.advantages import overlong_penalty
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.losses import LOSSES, Terms, sequence_sum, spread, token_weights


def value_and_slope(kind, ratio, advantage, cfg, ids=None, mask=None, n=1):
    """Losses [B, T], d(sum)/dlogp [B, T] and the clip flags, for given ratios π/π_old."""
    ratio, advantage = (np.atleast_2d(np.asarray(x, np.float32)) for x in (ratio, advantage))
    mask = np.ones(ratio.shape, bool) if mask is None else np.asarray(mask)
    ids = np.zeros(ratio.shape, np.int32) if ids is None else np.asarray(ids, np.int32)
    old = np.full(ratio.shape, -1.5, np.float32)

    def total(logp):
        terms = Terms(logp, old, jnp.asarray(advantage), jnp.asarray(mask), jnp.asarray(ids))
        out = LOSSES[kind](terms, cfg, n)
        return out.loss.sum(), out

    slope, out = jax.jit(jax.grad(total, has_aux=True))(old + np.log(ratio))
    return np.asarray(out.loss), np.asarray(slope), np.asarray(out.clipped)


def test_ppo_clips_both_signs_and_dual_clips_the_negative_one():
    cfg = GRPOConfig(clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    ratio = [0.5, 1.0, 1.1, 1.5, 4.0]
    loss, slope, clipped = value_and_slope("ppo", ratio, np.full(5, 2.0), cfg)
    np.testing.assert_allclose(loss[0], [-1.0, -2.0, -2.2, -2.4, -2.4], rtol=1e-5)
    np.testing.assert_allclose(slope[0], [-1.0, -2.0, -2.2, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(clipped[0], [0, 0, 0, 1, 1])

    loss, slope, clipped = value_and_slope("ppo", ratio, np.full(5, -2.0), cfg)
    np.testing.assert_allclose(loss[0], [1.6, 2.0, 2.2, 3.0, 6.0], rtol=1e-5)
    np.testing.assert_allclose(slope[0], [0, 2.0, 2.2, 3.0, 0], rtol=1e-5)
    np.testing.assert_array_equal(clipped[0], [1, 0, 0, 0, 1])


def test_without_dual_clip_the_negative_side_is_unbounded():
    loss, slope, clipped = value_and_slope("ppo", [4.0], [-2.0], GRPOConfig(dual_clip=None))
    np.testing.assert_allclose([loss[0, 0], slope[0, 0]], [8.0, 8.0], rtol=1e-5)
    assert not clipped.any()


def test_clip_higher_lets_good_tokens_rise_further_and_leaves_the_lower_side():
    cfg = GRPOConfig(clip_low=0.2, clip_high=0.28)
    loss, slope, _ = value_and_slope("ppo", [1.25, 1.3, 0.7], [1.0, 1.0, -1.0], cfg)
    np.testing.assert_allclose(loss[0], [-1.25, -1.28, 0.8], rtol=1e-5)
    np.testing.assert_allclose(slope[0], [-1.25, 0, 0], rtol=1e-5)


# Two sequences in one row and a third in the next, with prompt and padding tokens about them.
IDS = np.array([[-1, 0, 0, 1, 1, 1], [-1, -1, 2, 2, -1, -1]])
RATIO = np.array([[1, 1.1, 1.2, 0.4, 0.5, 2.0], [1, 1, 0.9, 0.8, 1, 1]])
ADVANTAGE = np.array([[0, 1, 1, -1, -1, -1], [0, 0, 2, 2, 0, 0]], float)


def test_gspo_uses_one_ratio_a_sequence_and_clips_sequences_as_wholes():
    cfg = GRPOConfig(loss="gspo", clip_low=0.2, clip_high=0.2)
    loss, slope, clipped = value_and_slope("gspo", RATIO, ADVANTAGE, cfg, IDS, IDS >= 0, 4)
    # exp(mean log r): √1.32 = 1.149 within; 0.4^(1/3) = .737 below .8 with A < 0, so clipped; √.72.
    s = [1.32**0.5, 0.4 ** (1 / 3), 0.72**0.5]
    np.testing.assert_allclose(loss[0, 1:], [-s[0]] * 2 + [0.8] * 3, rtol=1e-5)
    np.testing.assert_allclose(loss[1, 2:4], [-2 * s[2]] * 2, rtol=1e-5)
    # Each token's gradient is that of its own log π, with the sequence's ratio as a weight.
    np.testing.assert_allclose(slope[0], [0, -s[0], -s[0], 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(slope[1], [0, 0, -2 * s[2], -2 * s[2], 0, 0], atol=1e-6)
    np.testing.assert_array_equal(clipped[0], [0, 0, 0, 1, 1, 1])


def test_gspo_token_gradient_sums_to_the_gradient_of_the_sequence_ratio():
    """GSPO, eq. 7: mean_t of the token losses has the gradient of −s·A, s = exp(mean_t log r)."""
    cfg = GRPOConfig(loss="gspo")
    rng = np.random.default_rng(0)
    ratio = np.exp(rng.normal(0, 0.1, 5))
    _, slope, _ = value_and_slope("gspo", ratio, np.full(5, 1.3), cfg)
    direct = jax.grad(lambda x: -1.3 * jnp.exp(jnp.mean(x)))(jnp.log(ratio))
    np.testing.assert_allclose(slope[0] / 5, direct, rtol=1e-5)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    cfg = GRPOConfig(loss="cispo", clip_low=0.2, clip_high=0.28)
    loss, slope, clipped = value_and_slope("cispo", [0.5, 1.1, 3.0], [1.0, 1.0, -2.0], cfg)
    # −sg(clip(r)) · A · log π: the weight is held, its gradient is not taken.
    weight = np.array([0.8, 1.1, 1.28]) * [1, 1, -2]
    np.testing.assert_allclose(slope[0], -weight, rtol=1e-5)
    np.testing.assert_allclose(loss[0], -weight * (-1.5 + np.log([0.5, 1.1, 3.0])), rtol=1e-5)
    np.testing.assert_array_equal(clipped[0], [1, 0, 1])


@pytest.mark.parametrize("kind", LOSSES)
def test_on_policy_every_loss_has_the_gradient_of_reinforce(kind):
    _, slope, clipped = value_and_slope(
        kind, np.ones((2, 6)), ADVANTAGE, GRPOConfig(loss=kind), IDS, IDS >= 0, 3
    )
    np.testing.assert_allclose(slope, -ADVANTAGE, rtol=1e-5)
    assert not clipped.any()


@pytest.mark.parametrize("kind", LOSSES)
def test_what_stands_at_a_masked_token_does_nothing(kind):
    old = jnp.full((1, 3), -1.0)
    mask = jnp.array([[True, False, True]])

    def total(middle):
        terms = Terms(
            jnp.array([[-1.0, 0.0, -1.1]]).at[0, 1].set(middle),
            old,
            jnp.ones((1, 3)),
            mask,
            jnp.zeros((1, 3), jnp.int32),
        )
        return jnp.where(mask, LOSSES[kind](terms, GRPOConfig(), 1).loss, 0.0).sum()

    both = jax.jit(jax.value_and_grad(total))
    plain = both(jnp.float32(-1.0))[0]
    for logp in (-np.inf, -1e30, 1e30):
        got, slope = both(jnp.float32(logp))
        assert got == plain and slope == 0


@pytest.mark.parametrize("kind", LOSSES)
def test_a_token_that_became_impossible_gives_finite_numbers(kind):
    for advantage in (-1.0, 1.0, 0.0):
        terms = [np.exp(-80.0), np.exp(80.0)], [advantage] * 2
        loss, slope, _ = value_and_slope(kind, *terms, GRPOConfig(dual_clip=None))
        assert np.isfinite(loss).all() and np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("aggregation", "first", "third"),
    [
        # Tokens: sequence 0 has two and sequence 2 has three in the mask; two sequences count.
        ("token_mean", 1 / 5, 1 / 5),
        ("seq_mean_token_sum", 1 / 2, 1 / 2),
        ("seq_mean_token_mean", 1 / 4, 1 / 6),
        ("seq_mean_token_sum_norm", 1 / 20, 1 / 20),
    ],
)
def test_token_weights_by_hand(aggregation, first, third):
    ids = np.array([[-1, 0, 0, 1, 1, 1], [-1, -1, 2, 2, 2, -1]])
    mask = (ids >= 0) & (ids != 1)
    weights = token_weights(aggregation, jnp.asarray(mask), jnp.asarray(ids), 4, 10)
    np.testing.assert_allclose(
        weights, np.select([ids == 0, ids == 2], [first, third], 0.0), rtol=1e-6
    )
    none = token_weights(aggregation, jnp.zeros_like(mask), jnp.asarray(ids), 4, 10)
    np.testing.assert_array_equal(none, 0)


def test_sequence_sum_and_spread_are_each_others_layout():
    x = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(sequence_sum(x, jnp.asarray(IDS), 4), [3, 12, 17, 0])
    np.testing.assert_array_equal(
        spread(jnp.array([5.0, 6.0, 7.0, 8.0]), jnp.asarray(IDS)),
        [[0, 5, 5, 6, 6, 6], [0, 0, 7, 7, 0, 0]],
    )


def test_overlong_penalty_falls_linearly_over_the_buffer():
    lengths = np.array([0, 80, 85, 90, 100])
    np.testing.assert_allclose(
        overlong_penalty(lengths, 100, 20, 0.5), [0, 0, -0.125, -0.25, -0.5], atol=1e-7
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("minibatches", 0),
        ("accumulate", 0),
        ("logprob_chunk", 0),
        ("clip_low", -0.1),
        ("clip_high", -0.1),
        ("kl_coef", -1.0),
        ("overlong_buffer", -1),
        ("dual_clip", 1.0),
        ("importance_cap", 0.0),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"grpo\.{field}={value}"):
        GRPOConfig(**{field: value})
