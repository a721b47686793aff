"""The decoder against itself: cached and whole, packed and alone, sharded and on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, params
from models.shared import rms_norm, unconstrained
from selfevolve_jax import sharding

B, T = 4, 12  # one batch shape for all tests, so that each config compiles once
LENGTHS = np.array([12, 9, 10, 8])
COLUMNS = np.broadcast_to(np.arange(T), (B, T))
REAL = LENGTHS[:, None] > COLUMNS

forward = jax.jit(decoder.forward, static_argnames=("cfg", "constrain"))
forward_cached = jax.jit(decoder.forward_cached, static_argnames=("cfg", "constrain"))
logits = jax.jit(decoder.logits, static_argnames="cfg")


@pytest.fixture(scope="module")
def cfg(tiny):
    """With biases and q/k norms: the most that a layer can hold."""
    return dataclasses.replace(tiny, qkv_bias=True, qk_norm=True)


@pytest.fixture(scope="module")
def weights(cfg):
    """Norm scales far from 1 and biases far from 0, so that one left out or misplaced shows."""
    specs = decoder.abstract_params(cfg)
    rng = np.random.default_rng(0)

    def draw(spec):
        if spec.stddev is not None:
            return jnp.asarray(rng.normal(0, spec.stddev, spec.shape), jnp.float32)
        return jnp.asarray(spec.fill + rng.uniform(-0.5, 0.5, spec.shape), jnp.float32)

    return jax.tree.map(draw, specs)


@pytest.fixture(scope="module")
def tokens(cfg):
    return np.random.default_rng(1).integers(0, cfg.vocab_size, (B, T)).astype(np.int32)


@pytest.fixture(scope="module")
def whole(cfg, weights, tokens):
    """Hidden states of the right-padded batch, by `forward`."""
    return np.asarray(read(weights, tokens, cfg))


def read(weights, tokens, cfg, *, positions=COLUMNS, segments=None, branches=None, **kw):
    """`forward` on the standard right-padded batch, unless told of another layout."""
    segments = np.where(REAL, 0, -1) if segments is None else segments
    branches = np.zeros((B, T), np.int32) if branches is None else branches
    return forward(weights, tokens, positions, segments, branches, cfg, **kw)


def worst(a, b):
    return float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max())


def in_steps(weights, tokens, cfg, prefill, cache, **kw):
    """Hidden states of every real token: a prefill of `width` columns, right-padded beyond each
    row's `prefill` tokens, and then one token a step, every row at its own position."""
    width = prefill.max()
    hidden, cache = forward_cached(weights, tokens[:, :width], COLUMNS[:, :width], cache, cfg, **kw)
    out = np.full((B, T, cfg.d_model), np.nan, np.float32)
    out[:, :width] = np.where(COLUMNS[:, :width, None] < prefill[:, None, None], hidden, np.nan)
    rows, at = np.arange(B), prefill.copy()
    while (at < LENGTHS).any():
        # A row that has ended is fed its last token again, as rollout does.
        here = np.minimum(at, LENGTHS - 1)
        hidden, cache = forward_cached(
            weights, tokens[rows, here][:, None], here[:, None], cache, cfg, **kw
        )
        out[rows, here] = hidden[:, 0]
        at += 1
    return out, cache


PREFILL = np.array([5, 3, 1, 7])


def test_cached_prefill_and_ragged_decode_equal_forward(cfg, weights, tokens, whole):
    cached, _ = in_steps(weights, tokens, cfg, PREFILL, decoder.empty_cache(cfg, B, T + 4))
    assert not np.isnan(cached[REAL]).any()
    assert worst(cached[REAL], whole[REAL]) < 1e-5


def test_cached_output_ignores_padding_and_what_the_cache_held(cfg, weights, tokens):
    """Other tokens at the padding of the prefill, and a cache full of huge numbers: bit for bit."""
    clean, _ = in_steps(weights, tokens, cfg, PREFILL, decoder.empty_cache(cfg, B, T + 4))
    width, rng = PREFILL.max(), np.random.default_rng(2)
    dirty = decoder.empty_cache(cfg, B, T + 4)
    dirty = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 1e20, x.shape), x.dtype), dirty)
    junk = tokens.copy()
    pad = COLUMNS[:, :width] >= PREFILL[:, None]
    junk[:, :width][pad] = (junk[:, :width][pad] + 1 + rng.integers(0, 15, pad.sum())) % 16
    first, held = forward_cached(weights, junk[:, :width], COLUMNS[:, :width], dirty, cfg)
    np.testing.assert_array_equal(np.asarray(first)[~pad], clean[:, :width][~pad])
    rows = np.arange(B)
    for step in range(5):
        here = np.minimum(PREFILL + step, LENGTHS - 1)
        hidden, held = forward_cached(
            weights, tokens[rows, here][:, None], here[:, None], held, cfg
        )
        np.testing.assert_array_equal(hidden[:, 0], clean[rows, here])


def test_a_chunk_on_top_of_a_cache_equals_forward(cfg, weights, tokens, whole):
    """Several new tokens at once against a cache that is not empty."""
    cache = decoder.empty_cache(cfg, B, T + 4)
    for start in (0, 6):
        part = slice(start, start + 6)
        hidden, cache = forward_cached(weights, tokens[:, part], COLUMNS[:, part], cache, cfg)
        real = REAL[:, part]
        assert worst(np.asarray(hidden)[real], whole[:, part][real]) < 1e-5


def test_packed_sequences_equal_the_same_alone(cfg, weights, tokens, whole):
    """Row 0 holds texts 3, 1 and a piece of 2 one after another, with a gap between the first two."""
    pieces = [(3, 0, 4), (1, 5, 4), (2, 9, 3)]  # text, first column, tokens of it
    packed, positions = tokens.copy(), COLUMNS.copy()
    segments = np.full((B, T), -1)
    for segment, (text, start, n) in enumerate(pieces):
        packed[0, start : start + n] = tokens[text, :n]
        positions[0, start : start + n] = np.arange(n)
        segments[0, start : start + n] = segment
    hidden = np.asarray(read(weights, packed, cfg, positions=positions, segments=segments))
    for text, start, n in pieces:
        assert worst(hidden[0, start : start + n], whole[text, :n]) < 1e-5


def shared_trunk(tokens):
    """Row 0: a trunk of 4 tokens with branches 1, 2, 3; the last goes on in row 0 after padding.

    Returns (tokens, positions, segments, branches), and by branch its columns after the trunk.
    """
    branches = np.zeros((B, T), np.int32)
    positions, segments = COLUMNS.copy(), np.full((B, T), -1)
    columns = {1: [4, 5, 6], 2: [7, 8], 3: [10, 11]}
    segments[0, :4] = 0
    for branch, at in columns.items():
        branches[0, at] = branch
        positions[0, at] = 4 + np.arange(len(at))
        segments[0, at] = 0
    return (tokens, positions, segments, branches), columns


def test_samples_on_a_shared_trunk_equal_each_alone(cfg, weights, tokens):
    (packed, positions, segments, branches), columns = shared_trunk(tokens)
    together = np.asarray(
        read(weights, packed, cfg, positions=positions, segments=segments, branches=branches)
    )
    alone = tokens.copy()
    for branch, at in columns.items():
        alone[branch, :4], alone[branch, 4 : 4 + len(at)] = packed[0, :4], packed[0, at]
    apart = np.asarray(read(weights, alone, cfg))
    for branch, at in columns.items():
        assert worst(together[0, :4], apart[branch, :4]) < 1e-5
        assert worst(together[0, at], apart[branch, 4 : 4 + len(at)]) < 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_never_changes_a_real_token(cfg, weights, tokens, whole, side):
    """Bit for bit whatever stands there, also token ids that do not exist; on the left, where the
    causal mask does not hide it, too."""
    turn = T - LENGTHS if side == "left" else np.zeros(B, int)
    order = (COLUMNS - turn[:, None]) % T
    texts, real = np.take_along_axis(tokens, order, 1), np.take_along_axis(REAL, order, 1)
    layout = {"positions": order, "segments": np.where(real, 0, -1)}
    clean = np.asarray(read(weights, texts, cfg, **layout))[real]
    expected = np.take_along_axis(whole, order[..., None], 1)[real]
    assert worst(clean, expected) < 1e-5
    other = np.random.default_rng(3).permutation(cfg.vocab_size)[texts]
    for junk in (other, -1, -100, cfg.vocab_size + 5):
        padded = np.where(real, texts, junk)
        assert (padded != texts)[~real].any()
        np.testing.assert_array_equal(np.asarray(read(weights, padded, cfg, **layout))[real], clean)


def test_gradients_flow_only_where_attention_may_look(cfg, weights, tokens):
    """d hidden[t] / d embedding[s] is exactly 0 for every s that t must not see, and not 0 else.

    A row with a trunk, three branches and padding, then a second text: what a token may see is
    written out here by hand. All 12 columns have a token of their own, so the gradient of the
    embedding table tells the columns apart.
    """
    segments = np.array([0, 0, 0, 0, 0, 0, -1, 0, 1, 1, 1, -1])
    branches = np.array([0, 0, 1, 1, 2, 2, 0, 3, 0, 0, 1, 0])
    positions = np.array([0, 1, 2, 3, 2, 3, 0, 2, 0, 1, 2, 0])
    sees = {
        0: {0},
        1: {0, 1},
        2: {0, 1, 2},
        3: {0, 1, 2, 3},
        4: {0, 1, 4},
        5: {0, 1, 4, 5},
        7: {0, 1, 7},
        8: {8},
        9: {8, 9},
        10: {8, 9, 10},
    }
    probe = jax.random.normal(jax.random.key(0), (cfg.d_model,))

    @jax.jit
    @jax.jacrev
    def jacobian(embed):
        row = [jnp.asarray(x)[None] for x in (np.arange(T), positions, segments, branches)]
        hidden = decoder.forward(dataclasses.replace(weights, embed=embed), *row, cfg)
        return hidden[0] @ probe

    flows = np.abs(np.asarray(jacobian(weights.embed))).max(axis=-1)  # [T, V]
    for t, allowed in sees.items():
        assert set(np.flatnonzero(flows[t] != 0)) == allowed, t
        assert flows[t, sorted(allowed)].min() > 1e-4, t


def variants(cfg):
    return {
        "dots": dataclasses.replace(cfg, remat="dots"),
        "full": dataclasses.replace(cfg, remat="full", unroll=2),
    }


def loss_of(weights, tokens, cfg, constrain=unconstrained):
    """Mean next-token cross-entropy over the real tokens of the standard batch."""
    segments = jnp.where(REAL, 0, -1)
    hidden = decoder.forward(
        weights, tokens, COLUMNS, segments, jnp.zeros((B, T), jnp.int32), cfg, constrain
    )
    logp = jax.nn.log_softmax(decoder.logits(weights, hidden, cfg))
    taken = jnp.take_along_axis(logp[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(REAL[:, 1:], taken, 0.0)) / REAL[:, 1:].sum()


loss_and_grads = jax.jit(jax.value_and_grad(loss_of), static_argnames=("cfg", "constrain"))


@pytest.fixture(scope="module")
def plain_loss_and_grads(cfg, weights, tokens):
    return jax.device_get(loss_and_grads(weights, tokens, cfg))


def assert_same_loss_and_grads(got, expected):
    assert abs(float(got[0]) - float(expected[0])) < 1e-5
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got[1]), jax.tree.leaves(expected[1]), strict=True
    ):
        assert np.abs(b).max() > 1e-4, path  # every parameter takes part
        assert worst(a, b) < 1e-5, path


@pytest.mark.parametrize("name", ["dots", "full"])
def test_remat_and_unroll_change_no_number(cfg, weights, tokens, plain_loss_and_grads, name):
    got = loss_and_grads(weights, tokens, variants(cfg)[name])
    assert_same_loss_and_grads(got, plain_loss_and_grads)


def test_remat_keeps_less_for_the_backward_pass(cfg, weights, tokens):
    """Sizes of what the forward pass saves, traced and never run: full < dots < none."""

    def kept(cfg):
        residuals = jax.eval_shape(
            lambda w: jax.vjp(lambda v: loss_of(v, tokens, cfg), w)[1], weights
        )
        return sum(x.size for x in jax.tree.leaves(residuals))

    none, dots, full = kept(cfg), kept(variants(cfg)["dots"]), kept(variants(cfg)["full"])
    # "full" keeps one [B, T, D] a layer; "dots" also q, k, v, o, gate, up, down.
    assert full + 4 * cfg.n_layers * B * T * cfg.d_model < dots < 0.8 * none


def test_bfloat16_stays_near_float32(cfg, weights, tokens, whole):
    """Products in bf16, logits and gradients in float32; bf16 keeps 8 bits, so ~1% of the scale."""
    half = dataclasses.replace(cfg, dtype="bfloat16")
    hidden = read(weights, tokens, half)
    scores, exact = logits(weights, hidden, half), logits(weights, whole, cfg)
    assert hidden.dtype == jnp.bfloat16 and scores.dtype == exact.dtype == jnp.float32
    error = np.asarray(scores - exact)[REAL]
    assert 1e-4 < np.sqrt(np.mean(error**2)) < 0.02 * np.asarray(exact)[REAL].std()
    cache = decoder.empty_cache(half, B, T + 4)
    assert cache.k.dtype == jnp.uint16  # the bits of bfloat16
    cached, cache = in_steps(weights, tokens, half, PREFILL, cache)
    assert cache.k.dtype == cache.v.dtype == jnp.uint16
    error = np.asarray(logits(weights, cached, cfg) - exact)[REAL]
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.asarray(exact)[REAL].std()
    grads = jax.eval_shape(jax.grad(lambda w: loss_of(w, tokens, half)), weights)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rms_norm_is_computed_in_float32(dtype):
    """4096 values on an offset: a bf16 sum of their squares would lose most of them."""
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (2, 4096)), dtype)
    scale = jnp.asarray(np.random.default_rng(1).uniform(0.5, 1.5, 4096), jnp.float32)
    wide = np.asarray(x, np.float64)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 0.25) * np.asarray(scale)
    ours = rms_norm(x, scale, 0.25)
    assert ours.dtype == x.dtype
    # bf16 keeps 8 bits: rounding once costs up to 2^-8 relative, and twice would cost more.
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), exact, rtol=1e-5 if dtype == "float32" else 2**-8
    )


@pytest.fixture(scope="module")
def spread(cfg, weights, mesh8):
    """The same weights placed over data 2 x fsdp 2 x tensor 2."""
    return jax.device_put(weights, sharding.tree_shardings(decoder.abstract_params(cfg), mesh8))


def test_parameters_really_are_split(spread, weights, mesh8):
    """d_model halves over fsdp; heads, kv heads, the MLP and the vocabulary halve over tensor."""
    expected = {
        "embed": (8, 16),
        "head": (16, 8),
        "final_norm": (32,),
        "q": (2, 16, 2, 8),
        "k": (2, 16, 1, 8),
        "v": (2, 16, 1, 8),
        "o": (2, 2, 8, 16),
        "gate": (2, 16, 24),
        "up": (2, 16, 24),
        "down": (2, 24, 16),
        "q_bias": (2, 2, 8),
        "k_bias": (2, 1, 8),
        "v_bias": (2, 1, 8),
        "attn_norm": (2, 32),
        "mlp_norm": (2, 32),
        "q_norm": (2, 8),
        "k_norm": (2, 8),
    }
    leaves = jax.tree_util.tree_leaves_with_path(spread)
    found = {path[-1].name: leaf for path, leaf in leaves}
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        assert {s.data.shape for s in leaf.addressable_shards} == {expected[name]}, name
        assert len(leaf.addressable_shards) == mesh8.size == 8
    held = sum(leaf.addressable_shards[0].data.size for leaf in found.values())
    assert held < 0.3 * params.count(weights)


def test_sharded_loss_and_gradients_equal_one_device(
    cfg, spread, tokens, mesh8, plain_loss_and_grads
):
    batch = sharding.put_batch(tokens, mesh8)
    got = loss_and_grads(spread, batch, cfg, sharding.constrainer(mesh8))
    assert_same_loss_and_grads(got, plain_loss_and_grads)


def test_sharded_cached_forward_equals_one_device(cfg, spread, tokens, whole, mesh8):
    """A padded prefill and ragged decode; the cache stays split by row and by kv head."""
    pin = sharding.constrainer(mesh8)
    empty = decoder.empty_cache(cfg, B, T + 4)
    cache = jax.device_put(empty, sharding.named(mesh8, decoder.CACHE_AXES, empty.k.shape, "cache"))
    cached, cache = in_steps(spread, tokens, cfg, PREFILL, cache, constrain=pin)
    assert worst(cached[REAL], whole[REAL]) < 1e-5
    for x in (cache.k, cache.v):
        assert {s.data.shape for s in x.addressable_shards} == {(2, 1, T + 4, 1, 8)}
