"""Flash attention against the plain one, by Pallas' interpreter; which is chosen where."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import attention, decoder, flash
from models.config import ModelConfig
from models.shared import Constrain, unconstrained
from selfevolve_jax import sharding
from selfevolve_jax.state import init_params

PADDING = -1


def config(kind: str, H: int = 4, N: int = 2, K: int = 8, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(16, 32, 2, H, N, K, 48, attention=kind, dtype=dtype)  # type: ignore


def operands(seed: int, B: int, T: int, H: int, N: int, K: int, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=(B, T, n, K)), dtype) for n in (H, N, N)]


def packed(seed: int, B: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments one after another, each a trunk and up to three branches of ragged lengths, then
    padding: what `build_batch` makes."""
    draw = np.random.default_rng(seed)
    segment, branch = np.full((B, T), PADDING, np.int32), np.zeros((B, T), np.int32)
    for b in range(B):
        at, end = 0, int(draw.integers(1, T + 1))
        for s in range(end):
            for r in range(draw.integers(1, 5)):
                size = int(draw.integers(1, 1 + max(T // 6, 1)))
                segment[b, at : min(at + size, end)], branch[b, at : min(at + size, end)] = s, r
                at = min(at + size, end)
    return segment, branch


@functools.partial(jax.jit, static_argnames=("cfg", "constrain", "blocks"))
def both(qkv, segment, branch, weight, cfg, constrain, blocks):
    del blocks  # so that what was compiled for others is not taken for these

    def loss(qkv):
        mixed = attention.self_attention(segment, branch, cfg, constrain)(*qkv)
        return (mixed.astype(jnp.float32) * weight).sum(), mixed

    (_, mixed), grads = jax.value_and_grad(loss, has_aux=True)(qkv)
    return [mixed, *grads]


def mixture_and_gradients(kind, qkv, ids, constrain=unconstrained, heed=True):
    """The mixture [B, T, H, K] and gradients by q, k and v, float32, of a random weighting of what is
    heeded of it."""
    B, T, H, K = qkv[0].shape
    cfg = config(kind, H, qkv[1].shape[2], K, qkv[0].dtype.name)
    weight = np.random.default_rng(7).normal(size=(B, T, H, K)).astype(np.float32)
    weight = np.where(np.broadcast_to(heed, (B, T))[:, :, None, None], weight, 0.0)
    found = both(qkv, *ids, weight, cfg, constrain, flash.BLOCKS)
    return [np.asarray(x, np.float32) for x in found]


def assert_close(got, want, tolerance: float):
    for name, a, b in zip(("mixture", "dq", "dk", "dv"), got, want, strict=True):
        assert np.isfinite(a).all(), name
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0), name


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks in short rows: the interpreter has none of a TPU's limits on their sizes."""
    monkeypatch.setattr(flash, "LANES", 8)
    monkeypatch.setattr(flash, "BLOCKS", (8,))


@pytest.mark.parametrize(("T", "H", "N"), [(1, 1, 1), (29, 4, 2), (40, 3, 1)])
def test_flash_equals_plain_forward_and_backward(small_blocks, T, H, N):
    """Up to five blocks of 8, the last one ragged; heads in groups of 1, 2 and 3."""

    @settings(max_examples=15)
    @given(seed=st.integers(0, 10**6))
    def check(seed):
        qkv, ids = operands(seed, 2, T, H, N, 8), packed(seed, 2, T)
        want = mixture_and_gradients("plain", qkv, ids)
        assert_close(mixture_and_gradients("flash", qkv, ids), want, 1e-5)

    check()


@pytest.mark.parametrize(("T", "K"), [(130, 64), (700, 16)])
def test_flash_equals_plain_in_the_blocks_that_a_tpu_runs(T, K):
    """130 in one block of 256, 700 in two of 384."""
    qkv, ids = operands(T, 1, T, 2, 1, K), packed(T, 1, T)
    want = mixture_and_gradients("plain", qkv, ids)
    assert_close(mixture_and_gradients("flash", qkv, ids), want, 1e-5)


def test_flash_equals_plain_in_bfloat16(small_blocks):
    """Both round probabilities to 8 bits, one before and one after dividing by their sum."""
    qkv, ids = operands(0, 2, 40, 4, 2, 8), packed(0, 2, 40)
    exact = mixture_and_gradients("plain", qkv, ids)
    got = mixture_and_gradients("flash", [x.astype(jnp.bfloat16) for x in qkv], ids)
    assert_close(got, exact, 2e-2)


@pytest.mark.parametrize(("size", "tolerance"), [(0.0, 1e-5), (1e4, 2e-2)])
def test_scores_of_any_size_give_no_nan(small_blocks, size, tolerance):
    """At 1e4 scores are rounded to about 2e-3, and weights are as wrong by either."""
    q, k, v = operands(1, 1, 24, 2, 1, 8)
    qkv, ids = [q * size, k, v], packed(1, 1, 24)
    want = mixture_and_gradients("plain", qkv, ids)
    assert_close(mixture_and_gradients("flash", qkv, ids), want, tolerance)


def test_by_hand():
    """Equal scores: a token gets the mean of what it sees. The trunk is 10, 20; branch 1 is 30;
    branch 2 is 40, 50; another segment is 60; then padding."""
    v = jnp.array([10.0, 20, 30, 40, 50, 60, 1e6]).reshape(1, 7, 1, 1) * jnp.ones((1, 7, 1, 8))
    segment = jnp.array([[0, 0, 0, 0, 0, 1, PADDING]])
    branch = jnp.array([[0, 0, 1, 2, 2, 0, 0]])
    got = flash.flash_attention(jnp.zeros_like(v), v, v, segment, branch, interpret=True)
    np.testing.assert_allclose(got[0, :6, 0, 0], [10, 15, 20, 70 / 3, 30, 60], rtol=1e-6)


def test_padding_changes_nothing_real(small_blocks):
    """Neither what stands at padding, nor how much of it there is, changes a bit of a real token's
    mixture, and padding gets no gradient from real tokens."""
    qkv, ids = operands(2, 2, 40, 4, 2, 8), packed(2, 2, 40)
    segment, _ = ids
    segment[:, 30:] = PADDING
    real = segment != PADDING
    other = [jnp.where(real[:, :, None, None], x, 1e3) for x in qkv]
    cut = [x[:, :32] for x in qkv]
    got = mixture_and_gradients("flash", qkv, ids, heed=real)
    changed = mixture_and_gradients("flash", other, ids, heed=real)
    short = mixture_and_gradients("flash", cut, [x[:, :32] for x in ids])
    np.testing.assert_array_equal(got[0][real], changed[0][real])
    np.testing.assert_array_equal(got[0][:, :32][real[:, :32]], short[0][real[:, :32]])
    for a, b in zip(got[1:], changed[1:], strict=True):
        assert not a[~real].any()
        np.testing.assert_array_equal(a[real], b[real])


def test_a_block_is_skipped_only_if_nothing_in_it_is_seen():
    """And is skipped at all: two segments of a block each never meet, nor do two branches."""
    draw = np.random.default_rng(0)
    q, k = draw.integers(-1, 3, (2, 1000, 3, 2))
    q[..., 1], k[..., 1] = abs(q[..., 1]), abs(k[..., 1])
    k = k.swapaxes(1, 2)
    seen = jax.vmap(lambda q, k: flash._visible(q, k, 1, 0, 3).any())(q, k)
    meet = jax.vmap(flash._may_meet)(q, k)
    assert 0 < seen.sum() < meet.sum() < 1000 and not (seen & ~meet).any()
    for q, k, meet in (((0, 0), (1, 0), 0), ((0, 1), (0, 2), 0), ((0, 1), (0, 0), 1)):
        q, k = np.full((4, 2), q), np.full((4, 2), k)
        assert bool(flash._may_meet(q, k.T)) == bool(meet)


def test_sharded_equals_unsharded(mesh8, small_blocks):
    """Rows over data and fsdp, heads and kv heads over tensor, by the kernel on each device."""
    qkv, ids = operands(3, 8, 24, 4, 2, 8), packed(3, 8, 24)
    whole = mixture_and_gradients("flash", qkv, ids)
    constrain = sharding.constrainer(mesh8)
    axes = (attention._Q_AXES, attention._KV_AXES, attention._KV_AXES)
    spread = [
        jax.device_put(x, sharding.named(mesh8, a, x.shape, "x"))
        for x, a in zip(qkv, axes, strict=True)
    ]
    got = mixture_and_gradients("flash", spread, ids, constrain=constrain)
    assert_close(got, whole, 1e-6)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_decoder_gives_the_same_by_either(mesh1, small_blocks, remat):
    segment, branch = (jnp.asarray(x) for x in packed(4, 2, 29))
    tokens = jax.random.randint(jax.random.key(1), (2, 29), 0, 16)
    positions = jnp.tile(jnp.arange(29), (2, 1))
    found = {}
    for kind in ("plain", "flash"):
        cfg = dataclasses.replace(config(kind), remat=remat)
        weights = init_params(cfg, jax.random.key(0), mesh1)

        def loss(weights, cfg=cfg):
            hidden = decoder.forward(weights, tokens, positions, segment, branch, cfg)
            return (jnp.where(segment[..., None] >= 0, hidden, 0.0) ** 3).sum()

        found[kind] = jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(weights))
    for a, b in zip(*found.values(), strict=True):
        # Of the largest: a small one may be what is left of large ones' sum.
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max(), rtol=0)


def lowered(kind: str, platform: str, constrain: Constrain) -> str:
    cfg = config(kind, K=64, dtype="bfloat16")
    B, T = 8, 1024
    qkv = [jax.ShapeDtypeStruct((B, T, n, 64), jnp.bfloat16) for n in (4, 2, 2)]
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def loss(qkv, segment, branch):
        mixed = attention.self_attention(segment, branch, cfg, constrain)(*qkv)
        return mixed.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss)).trace(qkv, ids, ids)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_tpu_gets_the_kernels_and_no_square(mesh8):
    """Forward, by queries and by keys; on a mesh each device its own."""
    on_mesh = dataclasses.replace(sharding.constrainer(mesh8), platform="tpu")
    for constrain in (Constrain("tpu"), on_mesh):
        text = lowered("auto", "tpu", constrain)
        assert text.count("stablehlo.custom_call @tpu_custom_call") == 3
        assert "1024x1024" not in text
    assert "1024x1024" in lowered("plain", "tpu", Constrain("tpu"))


def test_the_cpu_gets_what_it_always_got(mesh8):
    for constrain in (unconstrained, sharding.constrainer(mesh8)):
        text = lowered("auto", "cpu", constrain)
        assert text == lowered("plain", "cpu", constrain)
        assert "tpu_custom_call" not in text


@pytest.mark.parametrize(
    ("change", "length", "kind"),
    [
        ({}, 1024, "cudnn"),
        ({"dtype": "float32"}, 1024, "plain"),
        ({"head_dim": 12}, 1024, "plain"),
        ({"head_dim": 256}, 1024, "plain"),
        ({}, 1023, "plain"),
        ({"attention": "plain"}, 1024, "plain"),
    ],
)
def test_a_gpu_gets_cudnn_where_cudnn_can(change, length, kind):
    cfg = dataclasses.replace(config("auto", K=128, dtype="bfloat16"), **change)
    assert attention.choose(cfg, length, "gpu") == kind
    assert attention.choose(cfg, length, "cpu") == "plain"
