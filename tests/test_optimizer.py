import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from models.config import ModelConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, learning_rate, make_optimizer

QWEN = ModelConfig(
    vocab_size=16,
    d_model=8,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    d_ff=8,
    qkv_bias=True,
    qk_norm=True,
)


def rates(steps, total, **options):
    schedule = learning_rate(OptimizerConfig(learning_rate=0.8, **options), total)
    return [float(schedule(i)) for i in steps]


def test_constant_is_constant():
    np.testing.assert_allclose(rates([0, 5, 99], 10), 0.8)


def test_warm_up_moves_from_its_first_step_and_reaches_the_peak_at_its_last():
    np.testing.assert_allclose(
        rates(range(6), 10, warmup_steps=4), [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6
    )
    np.testing.assert_allclose(rates([0, 1], 10, warmup_steps=1), 0.8, rtol=1e-6)


def test_cosine_and_linear_run_from_the_peak_to_the_end_factor():
    # Two steps of warm-up, then eight: halfway through them is step 6, the end is step 10.
    at = [1, 2, 4, 6, 10, 50]
    np.testing.assert_allclose(
        rates(at, 10, warmup_steps=2, schedule="linear", end_factor=0.25),
        [0.8, 0.8, 0.65, 0.5, 0.2, 0.2],
        rtol=1e-6,
    )
    # end + (peak − end) · (1 + cos(π x)) / 2 at x = 0, 1/4, 1/2, 1.
    quarter = 0.2 + 0.6 * (1 + np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose(
        rates(at, 10, warmup_steps=2, schedule="cosine", end_factor=0.25),
        [0.8, 0.8, quarter, 0.5, 0.2, 0.2],
        rtol=1e-6,
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_no_step_of_a_run_has_rate_zero(schedule):
    """With an end factor of 0 the rate would be 0 only at the step after the last."""
    values = rates(range(9), 8, schedule=schedule)
    assert min(values[:8]) > 0.02 and values[8] < 1e-6


def test_weight_decay_acts_on_matrices_and_not_on_norms_and_biases():
    """With gradients of 0, what moves is what decays: p · (1 − rate · decay)."""
    specs = decoder.abstract_params(QWEN)
    mask = decay_mask(specs)
    tx = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10, mask)
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), specs)

    @jax.jit
    def step(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return tx.update(zeros, tx.init(params), params)[0]

    moved = {
        jax.tree_util.keystr(path): float(update.min())
        for path, update in jax.tree_util.tree_leaves_with_path(step(params))
        if update.any()
    }
    assert set(moved) == {".embed", ".head"} | {
        f".layers.{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    np.testing.assert_allclose(list(moved.values()), -0.05, rtol=1e-6)


def test_one_adamw_step_by_hand_with_the_global_norm_clipped():
    """Two leaves of norm 5 in all are clipped to 1; an eps of 1 lets Adam show the gradient's size."""
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=1.0, eps=1.0)
    params = {"a": np.array([2.0], np.float32), "b": np.array([2.0], np.float32)}
    grads = {"a": np.array([3.0], np.float32), "b": np.array([-4.0], np.float32)}
    tx = make_optimizer(config, 10, (True, False))
    updates, _ = tx.update(grads, tx.init(params), params)
    # The first step's bias-corrected moments are g and g²: rate · (g / (|g| + 1) + decay · p).
    np.testing.assert_allclose(updates["a"], [-0.1 * (0.6 / 1.6 + 0.5 * 2)], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [0.1 * 0.8 / 1.8], rtol=1e-5)

    small = jax.tree.map(lambda g: g / 50, grads)  # norm 0.1: left alone
    updates, _ = tx.update(small, tx.init(params), params)
    np.testing.assert_allclose(updates["b"], [0.1 * 0.08 / 1.08], rtol=1e-5)

    open_config = OptimizerConfig(learning_rate=0.1, clip_norm=None, eps=1.0)
    tx = make_optimizer(open_config, 10, (False, False))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["b"], [0.1 * 4 / 5], rtol=1e-5)


def test_the_same_settings_give_the_same_object():
    """It is a static argument of jitted steps: another object would compile them again."""
    mask = (True, False)
    first = make_optimizer(OptimizerConfig(learning_rate=0.3), 10, mask)
    assert make_optimizer(OptimizerConfig(learning_rate=0.3), 10, (True, False)) is first
    assert make_optimizer(OptimizerConfig(learning_rate=0.3), 11, mask) is not first
    assert make_optimizer(OptimizerConfig(learning_rate=0.4), 10, mask) is not first


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("eps", 0.0),
        ("b1", 1.0),
        ("b2", -0.1),
        ("warmup_steps", -1),
        ("weight_decay", -0.5),
        ("clip_norm", 0.0),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=rf"optimizer\.{field}={value}"):
        OptimizerConfig(**{field: value})
