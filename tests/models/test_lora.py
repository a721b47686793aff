"""Adapters against the sum that defines them, W + alpha/rank · A·B, for every projection."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, lora, vision
from models.config import PROJECTIONS, LoraConfig, ModelConfig, VisionConfig
from models.params import initialise
from models.vision import Pixels

CONFIG = LoraConfig(rank=3, alpha=6.0, vision=True)
MODEL = ModelConfig(
    vocab_size=16,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=24,
    qkv_bias=True,
    mrope_sections=(2, 1, 1),
    vision=VisionConfig(
        d_model=16,
        n_layers=2,
        n_heads=2,
        d_ff=12,
        image_token=9,
        full_attention=(1,),
        patch=2,
        window=8,
    ),
    lora=CONFIG,
)


def random_params(cfg, seed=0):
    """Every leaf drawn, B too, so that an adapter left out shows."""
    specs = jax.tree.map(
        lambda s: dataclasses.replace(s, stddev=s.stddev or 0.3), decoder.abstract_params(cfg)
    )
    return jax.jit(lambda key: initialise(specs, key))(jax.random.key(seed))


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@jax.jit
def hidden(params):
    tokens = jnp.arange(12).reshape(2, 6) % 16
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    same = jnp.zeros((2, 6), jnp.int32)
    return decoder.forward(params, tokens, positions, same, same, MODEL)


@jax.jit
def seen(params):
    cfg = MODEL.vision
    rng = np.random.default_rng(1)
    n = 2 * cfg.window_units * 4
    pixels = Pixels(
        jnp.asarray(rng.normal(size=(1, n, cfg.patch_dim)), jnp.float32),
        jnp.asarray(rng.integers(0, 4, (1, n, 2)), jnp.int32),
        jnp.asarray(np.repeat([[0, 1]], n // 2, axis=1), jnp.int32),
    )
    return vision.encode(params.vision, pixels, MODEL)


def test_the_tree_has_an_adapter_for_every_target_and_b_starts_at_zero():
    fresh = jax.jit(lambda: initialise(decoder.abstract_params(MODEL), jax.random.key(0)))()
    assert set(fresh.layers.lora) == set(PROJECTIONS)
    assert set(fresh.vision.layers.lora) == {"qkv", "o", "gate", "up", "down"}
    for adapter in (*fresh.layers.lora.values(), *fresh.vision.layers.lora.values()):
        assert not adapter.b.any() and adapter.a.any()
    o = fresh.layers.lora["o"]  # the one whose input has two axes
    assert o.a.shape == (2, 4, 8, 3) and o.b.shape == (2, 3, 32)
    bare = dataclasses.replace(fresh.layers, lora=None)
    np.testing.assert_array_equal(hidden(fresh), hidden(dataclasses.replace(fresh, layers=bare)))


def test_only_named_targets_and_no_tower_unless_asked():
    cfg = dataclasses.replace(MODEL, lora=LoraConfig(2, 4.0, ("q", "down")))
    tree = decoder.abstract_params(cfg)
    assert set(tree.layers.lora) == {"q", "down"} and tree.vision.layers.lora is None


def test_a_delta_by_hand(params):
    """One entry of the output projection, summed out: alpha/rank · Σ_z A[h,k,z] B[z,d]."""
    a, b = (
        np.asarray(x, np.float64) for x in (params.layers.lora["o"].a, params.layers.lora["o"].b)
    )
    expected = float(params.layers.o[1, 2, 3, 4]) + 2.0 * sum(
        a[1, 2, 3, z] * b[1, z, 4] for z in range(3)
    )
    merged, cfg = lora.merge(params, MODEL)
    assert abs(float(merged.layers.o[1, 2, 3, 4]) - expected) < 1e-6
    assert cfg.lora.rank == 0 and merged.layers.lora is None and merged.vision.layers.lora is None


@pytest.mark.parametrize("run", [hidden, seen])
def test_merged_weights_give_what_adapters_give(params, run):
    merged, _ = lora.merge(params, MODEL)
    assert jax.tree.structure(merged) == jax.tree.structure(
        decoder.abstract_params(dataclasses.replace(MODEL, lora=LoraConfig()))
    )
    with jax.default_matmul_precision("highest"):
        ours, theirs = run(params), run(merged)
    np.testing.assert_allclose(ours, theirs, atol=3e-6 * float(jnp.abs(theirs).max()), rtol=0)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_each_adapter_acts(params, name):
    """Without one of them the output moves; so none is left out of the forward pass."""
    layers = params.layers
    without = {k: v for k, v in layers.lora.items() if k != name}
    less = dataclasses.replace(params, layers=dataclasses.replace(layers, lora=without))
    assert float(jnp.abs(hidden(params) - hidden(less)).max()) > 1e-3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"rank": -1}, "rank -1"),
        ({"targets": ()}, "name some of q, k"),
        ({"targets": ("q", "head")}, "q head"),
        ({"targets": ("q", "q")}, "each once"),
    ],
)
def test_impossible_adapters_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        LoraConfig(**{"rank": 2, **bad})
