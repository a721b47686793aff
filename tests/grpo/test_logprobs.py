"""Chunked log-probs and entropies against the plain [B, T, V] computation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from models.config import ModelConfig
from selfevolve_jax.grpo.batch import build_batch
from selfevolve_jax.grpo.logprobs import _norm_and_mean, _parts, token_logprobs
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.state import init_params

V, B, T = 37, 4, 20  # V is the size of no other axis
CFG = ModelConfig(
    vocab_size=V, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24
)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6]]
LENGTHS = np.array([[6, 1], [0, 5]], np.int32)


def laid_out(samples_per_segment=1, pack=False):
    rng = np.random.default_rng(0)
    inside = np.arange(6) < LENGTHS[..., None]
    tokens = np.where(inside, rng.integers(0, V, (2, 2, 6)), 0).astype(np.int32)
    samples = Samples(tokens, np.zeros(tokens.shape, np.float32), LENGTHS, LENGTHS < 6)
    return build_batch(
        PROMPTS,
        samples,
        row_multiple=B,
        samples_per_segment=samples_per_segment,
        pack=pack,
        length=T,
    )


@pytest.fixture(scope="module")
def weights(mesh1):
    return init_params(CFG, jax.random.key(0), mesh1)


def weighed(params, batch, temperature, scores):
    """A scalar in which each token's log-prob and entropy has a weight of its own."""
    logp, entropy = scores(params, batch, temperature)
    at = jnp.where(batch.sequence_ids_BxT >= 0, batch.positions + 10.0 * batch.tokens_BxT, 0)
    return (jnp.sin(at) * logp + jnp.cos(at) * entropy).sum(), (logp, entropy)


def naive(params, batch, temperature):
    """All scores at once; token t is predicted by token t − 1, one sequence a row."""
    hidden = decoder.forward(
        params,
        batch.tokens_BxT,
        batch.positions,
        batch.segment_ids_BxT,
        batch.branch_ids_BxT,
        CFG,
    )
    logp_BxTxV = jax.nn.log_softmax(decoder.logits(params, hidden, CFG) / temperature)
    before = jnp.pad(logp_BxTxV, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    own = jnp.take_along_axis(before, batch.tokens_BxT[..., None], axis=-1)[..., 0]
    entropy = -(jnp.exp(before) * before).sum(-1)
    response = batch.sequence_ids_BxT >= 0
    return jnp.where(response, own, 0.0), jnp.where(response, entropy, 0.0)


def gradient(scores):
    return jax.value_and_grad(partial(weighed, scores=scores), has_aux=True)


def chunked(chunk):
    return gradient(lambda p, b, t: token_logprobs(p, b, t, CFG, chunk))


@pytest.fixture(scope="module")
def compiled(weights):
    """Chunks of 7: 20 tokens in three pieces, the last one padded."""
    return jax.jit(chunked(7)).lower(weights, laid_out(), np.float32(1.0)).compile()


@pytest.fixture(scope="module")
def plain():
    return jax.jit(gradient(naive))


def close(a, b, tolerance=2e-6):
    """Of each array's largest number, or of 1: a small one may be what is left of large ones' sum."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        largest = np.abs(y).max(initial=1.0)
        np.testing.assert_allclose(x, y, atol=tolerance * largest, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_those_of_all_scores_at_once(
    temperature, compiled, plain, weights
):
    batch = laid_out()
    got, expected = (f(weights, batch, np.float32(temperature)) for f in (compiled, plain))
    close(got, expected)
    (_, (logp, entropy)), grads = got
    response = batch.sequence_ids_BxT >= 0
    assert np.all(logp[response] < 0) and np.all(entropy[response] > 0.5)
    assert not logp[~response].any() and not entropy[~response].any()
    assert logp.dtype == entropy.dtype == np.float32
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 0.1


@pytest.mark.parametrize("chunk", [1, T + 30])
def test_the_chunk_size_does_not_change_the_numbers(chunk, plain, weights):
    args = weights, laid_out(), np.float32(0.6)
    close(jax.jit(chunked(chunk))(*args), plain(*args))


def test_temperature_zero_is_read_as_one(compiled, weights):
    batch = laid_out()
    close(compiled(weights, batch, np.float32(0.0)), compiled(weights, batch, np.float32(1.0)), 0)


@pytest.mark.parametrize("layout", [(2, False), (1, True), (2, True)], ids=str)
def test_shared_prompts_and_packing_give_each_sequence_the_same_numbers(layout, compiled, weights):
    alone, batch = laid_out(), laid_out(*layout)
    (total, ours), grads = compiled(weights, batch, np.float32(0.6))
    (same_total, expected), same_grads = compiled(weights, alone, np.float32(0.6))
    assert (batch.segment_ids_BxT != alone.segment_ids_BxT).any()
    for i in range(LENGTHS.size):
        for x, y in zip(ours, expected, strict=True):
            close(x[batch.sequence_ids_BxT == i], y[alone.sequence_ids_BxT == i])
    close((total, grads), (same_total, same_grads), 5e-6)


def score_arrays(jaxpr, size):
    """Shapes with an axis of V and at least `size` elements, in a jaxpr and all jaxprs within."""
    found = []
    for eqn in jaxpr.eqns:
        shapes = [getattr(v.aval, "shape", ()) for v in eqn.outvars]
        found += [s for s in shapes if V in s and np.prod(s) >= size]
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += score_arrays(inner, size)
    return found


def test_no_array_of_all_scores_is_made_forward_or_backward(weights, compiled):
    """Neither whole, [B, T, V], nor in pieces that a scan would stack for its backward pass."""
    args = weights, laid_out(), np.float32(1.0)
    whole = B * T * V
    assert score_arrays(jax.make_jaxpr(chunked(7))(*args).jaxpr, whole) == []
    assert score_arrays(jax.make_jaxpr(chunked(7))(*args).jaxpr, B * 7 * V)  # it does see chunks
    assert score_arrays(jax.make_jaxpr(gradient(naive))(*args).jaxpr, whole)
    assert score_arrays(jax.make_jaxpr(chunked(T))(*args).jaxpr, whole)
    # And the compiler makes none either.
    import re

    shapes = [
        [int(n) for n in found.split(",") if n]
        for found in re.findall(r"\bf32\[([\d,]*)\]", compiled.as_text())
    ]
    assert [s for s in shapes if V in s]
    assert [s for s in shapes if V in s and np.prod(s) >= whole] == []


def test_sums_by_parts_are_those_of_the_whole():
    """Normaliser, mean under the softmax and both gradients, with one part of no weight at all."""
    z = np.random.default_rng(0).normal(0, 5, (3, 48)).astype(np.float32)
    z[1, 3:6] = -1e9
    wide = z.astype(np.float64)
    norm = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
    probs = np.exp(wide - norm[:, None])
    mean = (probs * wide).sum(-1)
    for parts in (1, 16):
        got = _norm_and_mean(jnp.asarray(z), parts)
        np.testing.assert_allclose(got[0], norm, rtol=1e-6)
        np.testing.assert_allclose(got[1], mean, rtol=1e-5)
        slopes = [
            jax.grad(lambda z, i=i, n=parts: _norm_and_mean(z, n)[i].sum())(z) for i in (0, 1)
        ]
        np.testing.assert_allclose(slopes[0], probs, atol=1e-6)
        np.testing.assert_allclose(slopes[1], probs * (1 + wide - mean[:, None]), atol=1e-5)


def test_only_large_vocabularies_on_a_cpu_are_summed_by_parts():
    """Elsewhere the vocabulary may be sharded, and a tiny one is one part."""
    assert [_parts(49152, p) for p in ("cpu", "gpu", "tpu")] == [16, 1, 1]
    assert _parts(151_936, "cpu") == 16 and _parts(64, "cpu") == _parts(50_257, "cpu") == 1
