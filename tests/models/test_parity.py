"""Logits against torch and transformers: tests/reference/decoder.npz, made by the script beside it."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from models.config import config_from_dict

REFERENCE = Path(__file__).parents[1] / "reference" / "decoder.npz"
CASES = ("llama-plain", "llama-linear", "llama-llama3", "llama-yarn", "qwen2-plain", "qwen3-plain")


@functools.cache
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as stored:
        return {name: stored[name] for name in stored.files}


def params_from_hf(weights: dict[str, np.ndarray], cfg) -> decoder.Params:
    """Our layout of Hugging Face weights; its matrices are [out, in], with heads inside `out`."""
    D, H, N, K = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    read = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    used = set()

    def get(name):
        used.add(name)
        return read[name]

    def stacked(name, *shape):
        rows = [get(f"model.layers.{i}.{name}") for i in range(cfg.n_layers)]
        return jnp.stack([(r.T if r.ndim == 2 else r).reshape(shape or r.T.shape) for r in rows])

    layers = decoder.Layers(
        attn_norm=stacked("input_layernorm.weight"),
        q=stacked("self_attn.q_proj.weight", D, H, K),
        k=stacked("self_attn.k_proj.weight", D, N, K),
        v=stacked("self_attn.v_proj.weight", D, N, K),
        o=stacked("self_attn.o_proj.weight", H, K, D),
        mlp_norm=stacked("post_attention_layernorm.weight"),
        gate=stacked("mlp.gate_proj.weight"),
        up=stacked("mlp.up_proj.weight"),
        down=stacked("mlp.down_proj.weight"),
    )
    if cfg.qkv_bias:
        layers.q_bias = stacked("self_attn.q_proj.bias", H, K)
        layers.k_bias = stacked("self_attn.k_proj.bias", N, K)
        layers.v_bias = stacked("self_attn.v_proj.bias", N, K)
    if cfg.qk_norm:
        layers.q_norm = stacked("self_attn.q_norm.weight")
        layers.k_norm = stacked("self_attn.k_norm.weight")
    params = decoder.Params(
        embed=get("model.embed_tokens.weight"),
        layers=layers,
        final_norm=get("model.norm.weight"),
        head=None if cfg.tie_embeddings else get("lm_head.weight").T,
    )
    assert used == set(read), f"weights that no parameter took: {set(read) - used}"
    return params


def load_case(name: str):
    stored = reference()
    case = json.loads(str(stored[f"case/{name}"]))
    cfg = config_from_dict(case["config"])
    prefix = f"weights/{case['model']}/"
    weights = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    return params_from_hf(weights, cfg), cfg


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name):
    """A ragged, right-padded batch: float32, 1e-5 at every real position."""
    params, cfg = load_case(name)
    stored = reference()
    tokens, lengths = stored["tokens"], stored["lengths"]
    columns = np.arange(tokens.shape[1])
    real = columns < lengths[:, None]

    @jax.jit
    def scores(params):
        positions = jnp.broadcast_to(columns, tokens.shape)
        segments = jnp.where(real, 0, -1)
        hidden = decoder.forward(
            params, jnp.asarray(tokens), positions, segments, jnp.zeros_like(segments), cfg
        )
        return decoder.logits(params, hidden, cfg)

    ours = scores(params)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(
        np.asarray(ours)[real], stored[f"logits/{name}"][real], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", CASES)
def test_weights_of_transformers_fill_the_abstract_tree(name):
    """The same leaves with the same shapes as abstract_params says, so nothing is left over."""
    params, cfg = load_case(name)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        lambda s: s.shape, decoder.abstract_params(cfg)
    )
