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


MARKS, BACK = (7, 8, 9), (2, 4)


def attention(params, tokens, monkeypatch, head=0):
    """[L, T, T]: what a head of each layer attends to."""
    T, seen = len(tokens), []
    whole = jax.nn.dot_product_attention

    def spy(q, k, v, mask, **named):
        scores = jnp.einsum("tk,sk->ts", q[0, :, head], k[0, :, head]) / np.sqrt(q.shape[-1])
        seen.append(jax.nn.softmax(jnp.where(mask[0, 0], scores, -jnp.inf), -1))
        return whole(q, k, v, mask=mask, **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    row = np.array([tokens])
    with jax.disable_jit():
        decoder.forward(params, row, np.arange(T)[None], np.zeros((1, T)), np.zeros((1, T)), MODEL)
    return np.array(seen)


@pytest.fixture(scope="module")
def params(mesh1):
    return with_lookup(init_params(MODEL, jax.random.key(0), mesh1), MODEL, MARKS, BACK, 0)


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


@pytest.mark.parametrize("head", [0, 1])
def test_the_third_looks_back(head, params, monkeypatch):
    tokens = np.random.default_rng(2).choice(MODEL.vocab_size, 100, replace=False)
    third, n = attention(params, tokens, monkeypatch, head)[2], BACK[head]
    assert (third.argmax(1)[n:] == np.arange(100 - n)).all()


def parts(rng, words=150):
    """Tokens that are no marks, in parts of any length that a mark begins, and where that mark is."""
    tokens = rng.choice(np.setdiff1d(np.arange(MODEL.vocab_size), MARKS), words, replace=False)
    begins = np.array([20, 50, 58, 75, 81, 120])
    tokens[begins] = rng.choice(MARKS, len(begins))
    last = begins[np.searchsorted(begins, np.arange(20, words), side="right") - 1]
    return tokens, last


def test_the_first_looks_at_the_mark_that_its_part_begins_with(params, monkeypatch):
    """Of all tokens after the first mark more than nine in ten give it most of their attention: beyond
    some 30 tokens a word may come before it."""
    tokens, last = parts(np.random.default_rng(3))
    first = attention(params, tokens, monkeypatch, 1)[0]
    assert (first.argmax(1)[20:] == last).mean() > 0.9
    assert first[np.arange(20, 150), last].mean() > 0.8


def test_the_second_looks_at_the_same_token_in_every_part(params, monkeypatch):
    """One token in the list, in the goal and now: each has a share far above other tokens', and
    together they have most. Where the goal has another, the list and now share it."""
    tokens, _ = parts(np.random.default_rng(4))
    tokens[30] = tokens[70] = tokens[100]
    tokens[35] = tokens[101]
    second = attention(params, tokens, monkeypatch, 1)[1]
    for row, same in ((100, [30, 70, 100]), (101, [35, 101])):
        others = np.delete(second[row, : row + 1], same)
        assert second[row, same].min() > 20 * others.mean()
        assert second[row, same].sum() > 0.5


def test_all_else_is_as_it_was(params, mesh1):
    """Of the embeddings what is left out is what lies in as many dimensions as there are marks."""
    plain = init_params(MODEL, jax.random.key(0), mesh1)
    old, new = plain.layers, params.layers
    changed = np.linalg.svd(np.array(plain.embed) - np.array(params.embed), compute_uv=False)
    assert (changed > 0.1).sum() == len(MARKS) and (changed[len(MARKS) :] < 1e-4).all()
    for name in ("q", "k", "v"):  # [L, D, H, K]
        before, after = (np.array(getattr(tree, name)) for tree in (old, new))
        np.testing.assert_array_equal(before[:, :, 2:], after[:, :, 2:])
    np.testing.assert_array_equal(old.o[:, 2:], new.o[:, 2:])
    np.testing.assert_array_equal(old.gate, new.gate)
    np.testing.assert_array_equal(old.down[1:], new.down[1:])


@pytest.mark.parametrize(
    "change",
    [
        *({"n_layers": 2}, {"qkv_bias": False}, {"tie_embeddings": False}, {"d_model": 64}),
        *({"n_kv_heads": 1}, {"n_heads": 1, "n_kv_heads": 1}),
    ],
)
def test_a_model_without_room_is_refused(change, params):
    with pytest.raises(UserError, match=f"{next(iter(change))}"):
        with_lookup(params, replace(MODEL, **change), MARKS, BACK, 0)
