import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import decoder
from selfevolve_jax import sharding
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.state import abstract_state, init_params, init_state, shardings_of


@pytest.fixture(scope="module")
def tx(tiny):
    return make_optimizer(OptimizerConfig(), 10, decay_mask(decoder.abstract_params(tiny)))


def adam_moments(opt_state):
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
    (found,) = [x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]
    return found


def test_moments_are_sharded_as_their_parameters_and_scalars_are_everywhere(tiny, tx, mesh8):
    state = abstract_state(tiny, tx, mesh8)
    adam = adam_moments(state.opt_state)
    expected = sharding.tree_shardings(decoder.abstract_params(tiny), mesh8)
    for tree in (state.params, adam.mu, adam.nu):
        assert shardings_of(tree) == expected
    assert state.params.layers.q.sharding.shard_shape((2, 32, 4, 8)) == (2, 16, 2, 8)
    assert state.step.sharding.is_fully_replicated and adam.count.sharding.is_fully_replicated


def test_a_made_state_is_what_the_abstract_one_says(tiny, tx, mesh8):
    weights = init_params(tiny, jax.random.key(0), mesh8)
    state = init_state(weights, tiny, tx, mesh8)
    abstract = abstract_state(tiny, tx, mesh8)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for real, spec in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (real.shape, real.dtype) == (spec.shape, spec.dtype)
        assert real.sharding.is_equivalent_to(spec.sharding, real.ndim)
    assert state.step == 0 and not any(x.any() for x in jax.tree.leaves(state.opt_state))


def test_the_given_parameters_outlive_the_donation_of_the_state(tiny, tx, mesh1):
    weights = init_params(tiny, jax.random.key(0), mesh1)
    kept = jax.device_get(weights)
    state = init_state(weights, tiny, tx, mesh1)
    bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    bumped = bump(state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))  # it was donated
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(weights), kept)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + 1), bumped.params, kept)


def test_parameters_do_not_depend_on_the_mesh(tiny, mesh1, mesh8):
    one, eight = (init_params(tiny, jax.random.key(0), mesh) for mesh in (mesh1, mesh8))
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (one, eight)))
    other = init_params(tiny, jax.random.key(1), mesh1)
    assert jnp.abs(other.embed - one.embed).max() > 0.1
