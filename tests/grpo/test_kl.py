import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selfevolve_jax.grpo.kl import ESTIMATORS

LOGITS = np.array([0.3, -1.0, 0.7, 0.1], np.float32)
REF = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # π_ref / π = 2 and 1/2, so δ = ±ln 2.
        ("k1", [-np.log(2), np.log(2)]),
        ("k2", [np.log(2) ** 2 / 2] * 2),
        ("k3", [2 - np.log(2) - 1, 0.5 + np.log(2) - 1]),
    ],
)
def test_values_worked_out_by_hand(kind, expected):
    logp, ref = np.log([0.25, 0.5]), np.log([0.5, 0.25])
    np.testing.assert_allclose(ESTIMATORS[kind](logp, ref), expected, rtol=1e-5)


def test_k3_is_clamped_and_stays_finite_where_the_reference_finds_a_token_absurd_or_certain():
    logp = jnp.array([0.0, 0.0, -1e4, -1e30, 0.0])
    ref = jnp.array([-5.0, -1e4, 0.0, 0.0, -1e30])
    # e^-5 + 5 - 1 is within bounds; δ = -20 gives 19, held to 10; δ = 20 gives e^20, held to 10.
    np.testing.assert_allclose(
        ESTIMATORS["k3"](logp, ref), [np.exp(-5) + 4, 10, 10, 10, 10], rtol=1e-6
    )
    slope = jax.grad(lambda x: ESTIMATORS["k3"](x, ref).sum())(logp)
    # d/dlogp = 1 - e^δ inside, 0 beyond the clamps.
    np.testing.assert_allclose(slope, [1 - np.exp(-5), 0, 0, 0, 0], rtol=1e-5)


logprob = hnp.arrays(np.float32, 16, elements=st.floats(-30, 0, width=32))


@settings(max_examples=50)
@given(logp=logprob, ref=logprob)
def test_k2_and_k3_are_never_negative_and_vanish_where_the_policies_agree(logp, ref):
    for kind in ("k2", "k3"):
        value = np.asarray(ESTIMATORS[kind](jnp.asarray(logp), jnp.asarray(ref)))
        # e^δ rounds to 1 + δ for tiny δ; the float32 remainder may be one unit in the last place.
        assert value.min() >= -2e-7
        np.testing.assert_array_equal(ESTIMATORS[kind](jnp.asarray(logp), jnp.asarray(logp)), 0)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    """The mean of 200,000 draws from π is within five standard errors of KL(π ‖ π_ref)."""
    logp = np.asarray(jax.nn.log_softmax(LOGITS), np.float64)
    p, true = np.exp(logp), float((np.exp(logp) * (logp - REF)).sum())
    drawn = np.random.default_rng(0).choice(4, 200_000, p=p / p.sum())
    off = {}
    for kind, estimate in ESTIMATORS.items():
        values = np.asarray(estimate(logp[drawn], REF[drawn]), np.float64)
        off[kind] = abs(values.mean() - true) / (values.std() / np.sqrt(values.size))
    assert true > 0.1 and off["k1"] < 5 and off["k3"] < 5 and off["k2"] > 10, (true, off)


def test_the_expected_gradient_of_k2_is_that_of_the_true_kl():
    """E_π[∇k2], with the draws themselves held still, is ∇KL(π ‖ π_ref); those of k1 and k3 are not:
    k1's is 0 and k3's is ∇KL(π_ref ‖ π)."""

    def kl(logits, swap=False):
        a, b = jax.nn.log_softmax(logits), jax.nn.log_softmax(REF)
        a, b = (b, a) if swap else (a, b)
        return (jnp.exp(a) * (a - b)).sum()

    def expected(kind):
        def mean(logits):
            logp = jax.nn.log_softmax(logits)
            weight = jax.lax.stop_gradient(jnp.exp(logp))
            return (weight * ESTIMATORS[kind](logp, jnp.asarray(REF))).sum()

        return jax.grad(mean)(jnp.asarray(LOGITS))

    forward, backward = jax.grad(kl)(jnp.asarray(LOGITS)), jax.grad(kl)(jnp.asarray(LOGITS), True)
    np.testing.assert_allclose(expected("k2"), forward, atol=1e-6)
    np.testing.assert_allclose(expected("k1"), 0, atol=1e-6)
    np.testing.assert_allclose(expected("k3"), backward, atol=1e-6)
    assert np.abs(forward - backward).max() > 0.02  # the two are told apart
