"""Self-attention that never holds a [T, T] array: Pallas kernels for TPU, forward and backward.

The method is FlashAttention-2 (Dao 2023, algorithms 1 and 2): an online softmax over blocks of keys,
and in the backward pass the probabilities made again from each query's log-sum-exp. The mask is
`decoder.forward`'s, made inside the kernel from what each token says of itself, so that packing,
shared prompts and padding cost no array either. Blocks above the diagonal are neither read nor
computed; blocks in which no query and key can meet are read but not computed.

Written here and not taken from jax.experimental.pallas.ops.tpu, whose kernels know segments but not
branches, and of which one repeats kv heads and the other needs its mask before it is traced.

Shape letters: B rows, T tokens, H heads, N kv heads, G = H/N heads of a group, K head_dim, S block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# The score of what is not seen: finite, so that a row of nothing but it gives no NaN on the way.
UNSEEN = -0.7 * float(jnp.finfo(jnp.float32).max)
LANES = 128  # T is padded to a multiple: the lanes of a vector register
BLOCKS = (512, 384, 256, LANES)


def flash_attention(
    q_BxTxHxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    segment_ids_BxT: jax.Array,
    branch_ids_BxT: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """What each token gathers from those it sees (see `decoder.forward`), [B, T, H, K].

    Any T and any H that is a multiple of N. Softmax and sums are float32, as are the accumulators of
    products; probabilities are cast to the dtype of the values before they meet them.
    interpret: run the kernels step by step as plain JAX, on any backend; for tests.
    """
    T = q_BxTxHxK.shape[1]
    length = -(-T // LANES) * LANES
    block = next(size for size in BLOCKS if length % size == 0)

    def heads_first(x: jax.Array) -> jax.Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - T), (0, 0)))

    # What pads T comes last, so nothing before it sees it.
    ids_BxTx2 = jnp.stack([segment_ids_BxT, branch_ids_BxT], axis=-1)
    ids_BxTx2 = jnp.pad(ids_BxTx2, ((0, 0), (0, length - T), (0, 0)))
    q, k, v = (heads_first(x) for x in (q_BxTxHxK, k_BxTxNxK, v_BxTxNxK))
    mixed: jax.Array = _flash(q, k, v, ids_BxTx2, block, interpret)
    return mixed[:, :, :T].swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q, k, v, ids, block: int, interpret: bool) -> jax.Array:
    return _forward(q, k, v, ids, block, interpret)[0]


def _flash_forward(q, k, v, ids, block: int, interpret: bool):
    out, lse = _forward(q, k, v, ids, block, interpret)
    # Kept without its last axis, which in memory would be padded to 128 lanes.
    return out, (q, k, v, ids, out, lse[..., 0])


def _flash_backward(block: int, interpret: bool, kept, d_out):
    q, k, v, ids, out, lse = kept
    mean = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    stats_BxHxTx2 = jnp.stack([lse, mean], axis=-1)
    operands = (q, k, v, ids, ids.swapaxes(1, 2), d_out, stats_BxHxTx2)
    d_q = _queries_backward(*operands, block, interpret)
    d_k, d_v = _keys_backward(*operands, block, interpret)
    return d_q, d_k, d_v, None


_flash.defvjp(_flash_forward, _flash_backward)


def _visible(ids_q_Sx2, ids_k_2xS, i, j, size: int) -> jax.Array:
    """[S, S]: whether query `row` of block i sees key `column` of block j."""
    square = (size, size)
    row = i * size + jax.lax.broadcasted_iota(jnp.int32, square, 0)
    column = j * size + jax.lax.broadcasted_iota(jnp.int32, square, 1)
    branch_k = jnp.broadcast_to(ids_k_2xS[1:], square)
    seen = (ids_q_Sx2[:, 1:] == branch_k) | (branch_k == 0)
    return (ids_q_Sx2[:, :1] == ids_k_2xS[:1]) & seen & (column <= row)


def _may_meet(ids_q_Sx2, ids_k_2xS) -> jax.Array:
    """Whether a query of the block may see a key of the block: False only where none does."""
    (q_segment, q_branch), (k_segment, k_branch) = (
        ((jnp.min(x), jnp.max(x)) for x in pair)
        for pair in ((ids_q_Sx2[:, :1], ids_q_Sx2[:, 1:]), (ids_k_2xS[:1], ids_k_2xS[1:]))
    )

    def overlap(a, b):
        return (a[0] <= b[1]) & (b[0] <= a[1])

    trunk = (k_branch[0] <= 0) & (k_branch[1] >= 0)
    return overlap(q_segment, k_segment) & (trunk | overlap(q_branch, k_branch))


def _scores(q, k, ids_q, ids_k, i, j) -> jax.Array:
    """Float32 [S, S], scaled, UNSEEN where the query does not see the key."""
    scores = _product(q, k, 1, 1) * q.shape[-1] ** -0.5
    return jnp.where(_visible(ids_q, ids_k, i, j, len(q)), scores, UNSEEN)


def _product(a, b, axis_a: int, axis_b: int) -> jax.Array:
    """a · b over one axis of each, accumulated in float32."""
    contract = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)


def _forward_kernel(q, k, v, ids_q, ids_k, out, lse, top, total, mixed):
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        top[...] = jnp.full_like(top, UNSEEN)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)

    @pl.when((j <= i) & _may_meet(ids_q[0], ids_k[0]))
    def _():
        scores = _scores(q[0, 0], k[0, 0], ids_q[0], ids_k[0], i, j)
        highest = jnp.maximum(top[...], jnp.max(scores, axis=1, keepdims=True))
        # A row that has seen nothing yet counts what is UNSEEN as 1; its first real score, at the
        # latest its own on the diagonal, makes `shrink` 0 and so forgets that.
        shrink = jnp.exp(top[...] - highest)
        weights = jnp.exp(scores - highest)
        total[...] = total[...] * shrink + jnp.sum(weights, axis=1, keepdims=True)
        mixed[...] = mixed[...] * shrink + _product(weights.astype(v.dtype), v[0, 0], 1, 0)
        top[...] = highest

    @pl.when(j == i)
    def _():
        out[0, 0] = (mixed[...] / total[...]).astype(out.dtype)
        lse[0, 0] = top[...] + jnp.log(total[...])


def _score_gradients(q, k, v, ids_q, ids_k, d_out, stats, i, j) -> tuple[jax.Array, jax.Array]:
    """Probabilities and the gradient of the scores, both float32 [S, S]."""
    scores = _scores(q[0, 0], k[0, 0], ids_q[0], ids_k[0], i, j)
    weights = jnp.exp(scores - stats[0, 0][:, :1])
    d_weights = _product(d_out[0, 0], v[0, 0], 1, 1)
    return weights, weights * (d_weights - stats[0, 0][:, 1:])


def _queries_kernel(q, k, v, ids_q, ids_k, d_out, stats, d_q, total):
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    @pl.when((j <= i) & _may_meet(ids_q[0], ids_k[0]))
    def _():
        _, d_scores = _score_gradients(q, k, v, ids_q, ids_k, d_out, stats, i, j)
        total[...] += _product(d_scores.astype(k.dtype), k[0, 0], 1, 0)

    @pl.when(j == i)
    def _():
        d_q[0, 0] = (total[...] * q.shape[-1] ** -0.5).astype(d_q.dtype)


def _keys_kernel(q, k, v, ids_q, ids_k, d_out, stats, d_k, d_v, total_k, total_v):
    j, g, i = pl.program_id(2), pl.program_id(3), pl.program_id(4)

    @pl.when((g == 0) & (i == 0))
    def _():
        total_k[...] = jnp.zeros_like(total_k)
        total_v[...] = jnp.zeros_like(total_v)

    @pl.when((j <= i) & _may_meet(ids_q[0], ids_k[0]))
    def _():
        weights, d_scores = _score_gradients(q, k, v, ids_q, ids_k, d_out, stats, i, j)
        total_v[...] += _product(weights.astype(d_out.dtype), d_out[0, 0], 0, 0)
        total_k[...] += _product(d_scores.astype(q.dtype), q[0, 0], 0, 0)

    @pl.when((g == pl.num_programs(3) - 1) & (i == pl.num_programs(4) - 1))
    def _():
        d_k[0, 0] = (total_k[...] * q.shape[-1] ** -0.5).astype(d_k.dtype)
        d_v[0, 0] = total_v[...].astype(d_v.dtype)


def _specs(place: Callable, group: int, size: int, width: int) -> dict[str, pl.BlockSpec]:
    """Where a grid step finds its block of each operand; `place(*step)` is its row, head, block of
    queries and block of keys."""

    def spec(shape, index) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *step: index(*place(*step)))

    return {
        "q": spec((1, 1, size, width), lambda b, h, i, j: (b, h, i, 0)),
        "k": spec((1, 1, size, width), lambda b, h, i, j: (b, jax.lax.div(h, group), j, 0)),
        "ids_q": spec((1, size, 2), lambda b, h, i, j: (b, i, 0)),
        "ids_k": spec((1, 2, size), lambda b, h, i, j: (b, 0, j)),
        "lse": spec((1, 1, size, 1), lambda b, h, i, j: (b, h, i, 0)),
        "stats": spec((1, 1, size, 2), lambda b, h, i, j: (b, h, i, 0)),
    }


def _along_queries(b, h, i, j):
    """The grid (B, H, block of queries, block of keys). Above the diagonal the block of keys stays
    the last one that was read, so that nothing is read."""
    return b, h, i, jnp.minimum(i, j)


def _call(kernel, grid, specs, inputs, outputs, out_shape, scratch, free: int, interpret: bool):
    """The kernel over `grid`, whose first `free` axes may run in any order."""
    order = [pltpu.PARALLEL] * free + [pltpu.ARBITRARY] * (len(grid) - free)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[specs[name] for name in inputs],
        out_specs=[specs[name] for name in outputs],
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
        interpret=interpret,
    )


def _forward(q, k, v, ids, size: int, interpret: bool):
    """The mixture of values [B, H, T, K] and the log-sum-exp of scores, float32 [B, H, T, 1]."""
    B, H, T, K = q.shape
    return _call(
        _forward_kernel,
        (B, H, T // size, T // size),
        _specs(_along_queries, H // k.shape[1], size, K),
        ("q", "k", "k", "ids_q", "ids_k"),
        ("q", "lse"),
        [
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, H, T, 1), jnp.float32),
        ],
        [(size, 1), (size, 1), (size, K)],
        3,
        interpret,
    )(q, k, v, ids, ids.swapaxes(1, 2))


_BACKWARD_INPUTS = ("q", "k", "k", "ids_q", "ids_k", "q", "stats")


def _queries_backward(q, k, v, ids_q, ids_k, d_out, stats, size: int, interpret: bool) -> jax.Array:
    B, H, T, K = q.shape
    return _call(
        _queries_kernel,
        (B, H, T // size, T // size),
        _specs(_along_queries, H // k.shape[1], size, K),
        _BACKWARD_INPUTS,
        ("q",),
        [jax.ShapeDtypeStruct(q.shape, q.dtype)],
        [(size, K)],
        3,
        interpret,
    )(q, k, v, ids_q, ids_k, d_out, stats)[0]


def _keys_backward(q, k, v, ids_q, ids_k, d_out, stats, size: int, interpret: bool):
    """The grid is (B, N, block of keys, head of the group, block of queries): what all heads of a
    group want of a key is summed in place, and kv heads are never repeated."""
    B, H, T, K = q.shape
    N = k.shape[1]

    def place(b, n, j, g, i):
        return b, n * (H // N) + g, jnp.maximum(i, j), j

    return _call(
        _keys_kernel,
        (B, N, T // size, H // N, T // size),
        _specs(place, H // N, size, K),
        _BACKWARD_INPUTS,
        ("k", "k"),
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v)],
        [(size, K), (size, K)],
        3,
        interpret,
    )(q, k, v, ids_q, ids_k, d_out, stats)
