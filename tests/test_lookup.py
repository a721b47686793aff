"""The heads that a small decoder begins with do what they are there for, before any training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from selfevolve_jax.errors import UserError
from selfevolve_jax.lookup import with_lookup
from selfevolve_jax.state import init_params
from selfevolve_jax.ui_genie import tiny

MODEL = replace(tiny.BaseConfig().model, vision=None, mrope_sections=None)


def attention(params, tokens, monkeypatch):
    """[L, T, T]: what head 0 of each layer attends to."""
    T, seen = len(tokens), []
    whole = jax.nn.dot_product_attention

    def spy(q, k, v, mask, **named):
        scores = jnp.einsum("tk,sk->ts", q[0, :, 0], k[0, :, 0]) / np.sqrt(q.shape[-1])
        seen.append(jax.nn.softmax(jnp.where(mask[0, 0], scores, -jnp.inf), -1))
        return whole(q, k, v, mask=mask, **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    row = np.array([tokens])
    with jax.disable_jit():
        decoder.forward(params, row, np.arange(T)[None], np.zeros((1, T)), np.zeros((1, T)), MODEL)
    return np.array(seen)


@pytest.fixture(scope="module")
def params(mesh1):
    return with_lookup(init_params(MODEL, jax.random.key(0), mesh1), MODEL, 0)


def test_the_first_layer_looks_at_the_token_before_at_any_place(params, monkeypatch):
    tokens = np.random.default_rng(0).choice(MODEL.vocab_size, 200, replace=False)
    first = attention(params, tokens, monkeypatch)[0]
    before = np.diagonal(first, -1)
    assert before.min() > 0.6
    assert (first.argmax(1)[1:] == np.arange(199)).all()


def test_the_second_looks_for_what_came_after_the_same_word(params, monkeypatch):
    """Each of the last 40 tokens came once before, among 60. What stood after it there gets more than
    five times its share of the attention, roughly as this is set."""
    rng = np.random.default_rng(1)
    listed = rng.choice(MODEL.vocab_size, 60, replace=False)
    places = rng.choice(59, 40, replace=False)
    second = attention(params, [*listed, *listed[places]], monkeypatch)[1]
    assert second[np.arange(60, 100), places + 1].mean() > 5 / 60


def test_the_third_looks_back_by_two(params, monkeypatch):
    tokens = np.random.default_rng(2).choice(MODEL.vocab_size, 100, replace=False)
    third = attention(params, tokens, monkeypatch)[2]
    assert (third.argmax(1)[2:] == np.arange(98)).all()


def test_all_else_is_as_it_was(params, mesh1):
    plain = init_params(MODEL, jax.random.key(0), mesh1)
    old, new = plain.layers, params.layers
    np.testing.assert_array_equal(plain.embed, params.embed)
    for name in ("q", "k", "v"):  # [L, D, H, K]
        before, after = (np.array(getattr(tree, name)) for tree in (old, new))
        np.testing.assert_array_equal(before[:, :, 1:], after[:, :, 1:])
    np.testing.assert_array_equal(old.o[:, 1:], new.o[:, 1:])
    np.testing.assert_array_equal(old.gate, new.gate)


@pytest.mark.parametrize(
    "change", [{"n_layers": 2}, {"qkv_bias": False}, {"tie_embeddings": False}, {"d_model": 64}]
)
def test_a_model_without_room_is_refused(change, params):
    with pytest.raises(UserError, match=f"{next(iter(change))}"):
        with_lookup(params, replace(MODEL, **change), 0)
