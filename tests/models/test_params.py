import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, params
from models.config import LoraConfig, ModelConfig, RopeScaling, VisionConfig, config_from_dict
from models.params import ParamSpec
from selfevolve_jax import sharding

FULL = ModelConfig(
    vocab_size=64,
    d_model=48,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=80,
    qkv_bias=True,
    qk_norm=True,
)


def named_leaves(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path).lstrip("."): leaf for path, leaf in pairs}


@jax.jit
def full_params(key):
    return params.initialise(decoder.abstract_params(FULL), key)


@pytest.fixture(scope="module")
def drawn():
    """(specs, values) by name, of a decoder with every optional parameter."""
    return named_leaves(decoder.abstract_params(FULL)), named_leaves(full_params(jax.random.key(0)))


def test_matrices_have_the_stated_deviation(drawn):
    """Within five standard errors: of the deviation, at most s/sqrt(2n); of the mean, s/sqrt(n)."""
    specs, values = drawn
    # Written out here, not read from the specs: 1/sqrt(fan_in), and 1/sqrt(2L) more on o and down.
    stated = dict.fromkeys(
        ["embed", "head", "layers.q", "layers.k", "layers.v", "layers.gate", "layers.up"], 48**-0.5
    ) | {"layers.o": 64**-0.5 / math.sqrt(6), "layers.down": 80**-0.5 / math.sqrt(6)}
    assert stated.keys() == {name for name, spec in specs.items() if spec.stddev is not None}
    for name, stddev in stated.items():
        x = np.asarray(values[name], np.float64)
        assert x.std() == pytest.approx(stddev, rel=5 / math.sqrt(2 * x.size)), name
        assert abs(x.mean()) < 5 * stddev / math.sqrt(x.size), name
        assert np.abs(x).max() < 2.3 * stddev, name  # truncated at 2 / 0.8796 = 2.274


def test_norm_scales_start_at_one_and_biases_at_zero(drawn):
    _, values = drawn
    for name, x in values.items():
        if "norm" in name:
            np.testing.assert_array_equal(x, 1.0, name)
        elif "bias" in name:
            np.testing.assert_array_equal(x, 0.0, name)


def test_no_two_matrices_or_layers_share_their_noise(drawn):
    """A reused key would give the same noise up to scale, in whole or from the first element on."""
    specs, values = drawn
    streams = {}
    for name, spec in specs.items():
        if spec.stddev is None:
            continue
        noise = np.asarray(values[name], np.float64) / spec.stddev
        if name.startswith("layers."):
            streams |= {f"{name}[{i}]": row.ravel() for i, row in enumerate(noise)}
        else:
            streams[name] = noise.ravel()
    length = min(map(len, streams.values()))
    correlation = np.corrcoef([x[:length] for x in streams.values()])
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 6 / math.sqrt(length)


def test_the_key_alone_decides_the_values(drawn):
    _, values = drawn
    again = named_leaves(full_params(jax.random.key(0)))
    other = named_leaves(full_params(jax.random.key(1)))
    for name, x in values.items():
        np.testing.assert_array_equal(x, again[name])
    assert all(
        (np.asarray(other[name]) != np.asarray(x)).mean() > 0.99
        for name, x in values.items()
        if not ("norm" in name or "bias" in name)
    )


def test_values_do_not_depend_on_the_mesh(mesh8):
    """Three parameters, split three ways, drawn in place: the same as those drawn on one device."""
    layers = decoder.abstract_params(FULL).layers
    specs = [layers.q, layers.attn_norm, layers.down]
    spread = jax.jit(
        lambda key: params.initialise(specs, key),
        out_shardings=sharding.tree_shardings(specs, mesh8),
    )(jax.random.key(0))
    assert spread[0].addressable_shards[0].data.size == spread[0].size // 4
    for ours, alone in zip(spread, params.initialise(specs, jax.random.key(0)), strict=True):
        np.testing.assert_allclose(ours, alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_abstract_tree_shapes_and_values_agree(dtype, tied):
    cfg = dataclasses.replace(FULL, param_dtype=dtype, tie_embeddings=tied)
    specs = decoder.abstract_params(cfg)
    shapes = params.shapes(specs)
    values = jax.eval_shape(lambda key: params.initialise(specs, key), jax.random.key(0))
    assert jax.tree.structure(specs) == jax.tree.structure(shapes) == jax.tree.structure(values)
    for name, spec in named_leaves(specs).items():
        shape, value = named_leaves(shapes)[name], named_leaves(values)[name]
        assert spec.shape == shape.shape == value.shape, name
        assert shape.dtype == value.dtype == jnp.dtype(dtype), name
    assert params.count(specs) == params.count(shapes) == params.count(values)
    # embed, head, final norm; a layer's q and o, k and v, MLP, norms, biases, q/k norms.
    layer = 2 * 48 * 64 + 2 * 48 * 32 + 3 * 48 * 80 + 2 * 48 + (64 + 2 * 32) + 2 * 16
    assert params.count(specs) == 64 * 48 * (1 if tied else 2) + 48 + 3 * layer


RELEASED = {
    "Llama-3.2-1B": (
        ModelConfig(128256, 2048, 16, 32, 8, 64, 8192, tie_embeddings=True),
        1_235_814_400,
    ),
    "Llama-3.1-8B": (ModelConfig(128256, 4096, 32, 32, 8, 128, 14336), 8_030_261_248),
    "Qwen2.5-0.5B": (
        ModelConfig(151936, 896, 24, 14, 2, 64, 4864, qkv_bias=True, tie_embeddings=True),
        494_032_768,
    ),
    "Qwen3-0.6B": (
        ModelConfig(151936, 1024, 28, 16, 8, 128, 3072, qk_norm=True, tie_embeddings=True),
        596_049_920,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_count_equals_that_of_transformers(name):
    """Totals as transformers counts its own models of these sizes (torch meta device)."""
    cfg, total = RELEASED[name]
    assert params.count(decoder.abstract_params(cfg)) == total


def test_optional_parameters_are_absent_unless_asked_for(tiny):
    names = set(named_leaves(decoder.abstract_params(tiny)))
    assert not any("bias" in n or "q_norm" in n or "k_norm" in n for n in names) and "head" in names
    tied = dataclasses.replace(tiny, tie_embeddings=True)
    assert set(named_leaves(decoder.abstract_params(tied))) == names - {"head"}


def test_every_dimension_has_an_axis_that_the_rules_know():
    for name, spec in named_leaves(decoder.abstract_params(FULL)).items():
        assert len(spec.axes) == len(spec.shape), name
        assert all(axis is None or axis in sharding.RULES for axis in spec.axes), name
    with pytest.raises(AssertionError):
        ParamSpec((2, 3), ("embed",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_heads": 5}, "n_heads 5 .* n_kv_heads 2"),
        ({"n_heads": 2, "n_kv_heads": 4}, "n_heads 2 .* n_kv_heads 4"),
        ({"head_dim": 7}, "head_dim 7"),
        ({"n_kv_heads": 0}, "n_kv_heads .*0"),
        ({"n_layers": -1}, "n_layers .*-1"),
        ({"vocab_size": 0}, "vocab_size .*0"),
        ({"unroll": 0}, "unroll .*0"),
        ({"remat": "some"}, "remat .*some"),
        ({"dtype": "float16"}, "dtype .*float16"),
        ({"attention": "splash"}, "attention .*splash"),
        ({"mrope_sections": (1, 2, 3)}, r"mrope_sections \(1, 2, 3\) .*head_dim"),
    ],
)
def test_impossible_sizes_are_refused_by_name(tiny, change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(tiny, **change)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        RopeScaling("linear", 2.0),
        RopeScaling("llama3", 8.0, original_max_position=8192),
        RopeScaling("yarn", 4.0, 32768, beta_fast=16.0, attention_factor=1.1),
    ],
)
def test_config_survives_json(scaling):
    """Equal, and equal in hash: a config is a static argument of jitted functions."""
    cfg = dataclasses.replace(
        FULL,
        rope_theta=5e5,
        rope_scaling=scaling,
        norm_eps=1e-5,
        tie_embeddings=True,
        mrope_sections=(1, FULL.head_dim // 2 - 2, 1),
        vision=VisionConfig(8, 2, 2, 12, image_token=3, full_attention=(1,), window=56),
        lora=LoraConfig(4, 8.0, ("q", "down"), vision=True),
        dtype="bfloat16",
        param_dtype="bfloat16",
        remat="dots",
        unroll=3,
    )
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    assert all(
        getattr(cfg, name) != value or name in ("rope_scaling", "attention")
        for name, value in defaults.items()
    )
    back = config_from_dict(json.loads(json.dumps(cfg.to_dict())))
    assert back == cfg and hash(back) == hash(cfg)
    assert config_from_dict(json.loads(json.dumps(FULL.to_dict()))) == FULL


def test_what_is_stored_does_not_say_how_attention_was_computed():
    """A policy that was trained on a TPU must load where there is none."""
    stored = dataclasses.replace(FULL, attention="flash").to_dict()
    assert config_from_dict(stored) == FULL and FULL.attention == "auto"
