"""Boxes of flattened arrays, and arrays that are filled from parts of tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from models.config import ModelConfig
from selfevolve_jax.pretrained import arrays, names


@st.composite
def boxes(draw):
    shape = draw(st.lists(st.integers(1, 5), max_size=4))
    bounds = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        bounds.append((start, draw(st.integers(start + 1, size))))
    return shape, bounds


@given(boxes())
def test_runs_are_the_box_in_order(box):
    shape, bounds = box
    whole = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    wanted = whole[tuple(slice(*b) for b in bounds)].ravel()
    found = arrays.runs(shape, bounds)
    assert np.concatenate([np.arange(*r) for r in found]).tolist() == wanted.tolist()


def test_runs_are_as_few_as_there_are_gaps():
    assert arrays.runs((3, 4, 8), [(0, 3), (2, 4), (0, 8)]) == [(16, 32), (48, 64), (80, 96)]
    assert arrays.runs((3, 4, 8), [(1, 3), (0, 4), (0, 8)]) == [(32, 96)]
    assert arrays.runs((6, 5), [(0, 6), (0, 5)]) == [(0, 30)]


SIZES = {"vocab_size": 16, "d_model": 8, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2}
CFG = ModelConfig(**SIZES, head_dim=4, d_ff=12, qkv_bias=True)


def numbered(cfg):
    """Every element of every tensor a number of its own."""
    found, start = {}, 0
    for name, (_, _, weight) in names.tensors(cfg).items():
        size = int(np.prod(weight.shape))
        found[name] = np.arange(start, start + size, dtype=np.float32).reshape(weight.shape)
        start += size
    return found


def reader(tensors, seen=None):
    def read(name, rows, columns):
        tensor = tensors[name]
        if seen is not None:
            seen.append((name, rows, columns))
        return tensor[rows] if tensor.ndim == 1 else tensor[rows, columns]

    return read


def test_matrices_are_turned_and_heads_come_apart(mesh1):
    tensors = numbered(CFG)
    params = arrays.fill(CFG, mesh1, reader(tensors))
    q = tensors["model.layers.1.self_attn.q_proj.weight"]  # [out = head, dim; in]
    assert params.layers.q[1, 5, 2, 3] == q[2 * 4 + 3, 5]
    o = tensors["model.layers.2.self_attn.o_proj.weight"]  # [out; in = head, dim]
    assert params.layers.o[2, 3, 1, 6] == o[6, 3 * 4 + 1]
    assert params.layers.v_bias[0, 1, 2] == tensors["model.layers.0.self_attn.v_proj.bias"][6]
    assert params.layers.down[0, 11, 7] == tensors["model.layers.0.mlp.down_proj.weight"][7, 11]
    assert params.embed[13, 2] == tensors["model.embed_tokens.weight"][13, 2]
    assert params.head[2, 13] == tensors["lm_head.weight"][13, 2]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))


@settings(max_examples=10)
@given(st.integers(1, 600))
def test_the_size_of_a_block_changes_nothing(mesh8, block):
    tensors = numbered(CFG)
    whole = arrays.fill(CFG, mesh8, reader(tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK_BYTES", block)
        patch.setattr(arrays, "_TILE", 1 + block % 7)
        parts = arrays.fill(CFG, mesh8, reader(tensors))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_only_what_the_devices_hold_is_read():
    """Two devices of a mesh of four, as a process of two would have: half of the rows of q."""
    mesh = jax.make_mesh((4,), ("tensor",), devices=jax.devices()[:4])
    weight = names.table(CFG)["layers.q"]
    seen = []
    tensors = numbered(CFG)
    index = NamedSharding(mesh, PartitionSpec(None, "tensor")).devices_indices_map((8, 4, 4))
    for device in jax.devices()[2:4]:
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index[device], (8, 4, 4), strict=True))
        shard = arrays._shard(
            *((8, 4, 4), bounds, np.dtype("float32"), weight),
            *("model.layers.0.self_attn.q_proj.weight", reader(tensors, seen)),
        )
        assert shard.shape == (8, 1, 4)
    read = [(rows.start, rows.stop, columns.start, columns.stop) for _, rows, columns in seen]
    assert read == [(8, 12, 0, 8), (12, 16, 0, 8)]


def test_a_layer_is_written_where_the_stack_already_lies(mesh8):
    """Donated: else each layer would make a second stack."""
    where = NamedSharding(mesh8, PartitionSpec(None, "fsdp", "tensor"))
    stack = jnp.zeros((3, 8, 8), device=where)
    before = [s.data.unsafe_buffer_pointer() for s in stack.addressable_shards]
    layer = jax.device_put(
        np.arange(64.0, dtype=np.float32).reshape(8, 8),
        NamedSharding(mesh8, PartitionSpec("fsdp", "tensor")),
    )
    after = arrays._write(stack, layer, np.int32(1), where=where)
    assert stack.is_deleted()
    assert [s.data.unsafe_buffer_pointer() for s in after.addressable_shards] == before
    np.testing.assert_array_equal(after[1], layer)
    assert not np.any(after[0]) and not np.any(after[2])


def test_donating_what_was_loaded_is_safe_where_devices_share_a_host_buffer(mesh8):
    """The data axis repeats shards, and a CPU device takes a host array over without a copy."""
    params = arrays.fill(CFG, mesh8, reader(numbered(CFG)))
    old = jax.tree.map(lambda x: np.array(x), params)
    train = jax.jit(lambda p: jax.tree.map(lambda x: 2 * x + 1, p), donate_argnums=0)
    new = train(train(params))
    for was, now in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        for shard in now.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), 4 * was[shard.index] + 3)
