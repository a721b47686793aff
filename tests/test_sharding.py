"""The mesh's sizes, the rules' meaning on it, and messages that name what does not divide."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from models import decoder, params
from models.params import ParamSpec
from models.shared import unconstrained
from selfevolve_jax import sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.sharding import MeshConfig


@pytest.mark.parametrize(
    ("config", "devices", "sizes"),
    [
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(), 1, (1, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), 8, (1, 8, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=-1), 8, (2, 2, 2)),
        (MeshConfig(fsdp=2, tensor=2), 4, (1, 2, 2)),
        (MeshConfig(tensor=3), 6, (2, 1, 3)),
    ],
)
def test_minus_one_takes_the_rest(config, devices, sizes):
    mesh = sharding.make_mesh(config, jax.devices()[:devices])
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in jax.devices()[:devices]]


@pytest.mark.parametrize(
    ("config", "devices", "said"),
    [
        (MeshConfig(data=0), 8, ["mesh.data=0", "positive"]),
        (MeshConfig(tensor=-2), 8, ["mesh.tensor=-2", "positive"]),
        (MeshConfig(fsdp=-1), 8, ["mesh.data=-1", "mesh.fsdp=-1", "only one", "Give data"]),
        (MeshConfig(fsdp=3), 8, ["mesh.fsdp=3", "8 device", "multiply to 3", "must divide 8"]),
        (MeshConfig(tensor=16), 8, ["mesh.tensor=16", "multiply to 16", "must divide 8"]),
        (MeshConfig(2, 2, 1), 8, ["mesh.data=2", "multiply to 4, not to 8", "mesh.data=-1"]),
        (MeshConfig(4, 4, 1), 8, ["mesh.fsdp=4", "multiply to 16, not to 8"]),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_its_sizes(config, devices, said):
    with pytest.raises(UserError) as error:
        sharding.make_mesh(config, jax.devices()[:devices])
    assert all(part in str(error.value) for part in said), error.value


def test_a_dimension_that_does_not_divide_is_named(mesh8):
    specs = {"layers": {"q": ParamSpec((2, 32, 3, 8), ("layers", "embed", "heads", None))}}
    with pytest.raises(UserError) as error:
        sharding.tree_shardings(specs, mesh8)
    said = str(error.value)
    assert all(part in said for part in ("parameter", "['layers']['q']", "'heads'", "size 3"))
    assert "tensor=2" in said and "fsdp" not in said and "data" not in said


def test_a_model_parameter_is_named_by_its_path(mesh8, tiny):
    from dataclasses import replace

    specs = decoder.abstract_params(replace(tiny, d_ff=49))
    with pytest.raises(UserError, match=r"parameter \.layers\.gate: .*'mlp'.* 49.*tensor=2"):
        sharding.tree_shardings(specs, mesh8)


def test_every_parameter_of_a_decoder_lies_in_the_stated_pieces(mesh8, tiny):
    """ZeRO-3 along d_model, Megatron along heads, kv heads, the MLP and the vocabulary."""
    specs = decoder.abstract_params(tiny)
    placed = sharding.tree_shardings(specs, mesh8)
    pieces = jax.tree.map(lambda s, x: x.shard_shape(s.shape), specs, placed)
    assert pieces.embed == (8, 16) and pieces.head == (16, 8)
    assert pieces.layers.q == (2, 16, 2, 8) and pieces.layers.k == (2, 16, 1, 8)
    assert pieces.layers.o == (2, 2, 8, 16)
    assert pieces.layers.gate == (2, 16, 24) and pieces.layers.down == (2, 24, 16)
    assert pieces.final_norm == (32,)
    values = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), params.shapes(specs))
    moved = jax.device_put(values, placed)
    whole = sum(x.nbytes for x in jax.tree.leaves(values))
    on_one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(moved))
    assert whole / 4 <= on_one < whole / 3.5  # norms alone are on every device


def test_a_mesh_axis_splits_one_dimension_only(mesh8):
    """batch takes data and fsdp, so embed of the same array finds none left; the first asks first."""
    placed = sharding.named(mesh8, ("batch", "length", "embed"), (4, 3, 5), "x")
    assert placed.shard_shape((4, 3, 5)) == (1, 3, 5)
    placed = sharding.named(mesh8, ("embed", "batch"), (4, 4), "x")
    assert placed.spec == PartitionSpec(("fsdp",), ("data",))


def test_put_batch_splits_the_first_axis_and_to_host_joins_it(mesh8):
    tree = {
        "a": np.arange(24, dtype=np.int32).reshape(8, 3),
        "b": np.arange(4, dtype=np.float32),
    }
    placed = sharding.put_batch(tree, mesh8)
    assert sharding.batch_ways(mesh8) == 4
    for name, whole in tree.items():
        n = len(whole) // 4
        starts = set()
        for shard in placed[name].addressable_shards:
            start = shard.index[0].start or 0
            starts.add(start)
            np.testing.assert_array_equal(np.asarray(shard.data), whole[start : start + n])
        assert starts == {0, n, 2 * n, 3 * n}
    back = sharding.to_host(placed)
    for name, whole in tree.items():
        assert isinstance(back[name], np.ndarray) and back[name].dtype == whole.dtype
        np.testing.assert_array_equal(back[name], whole)


def test_a_batch_that_does_not_divide_is_refused(mesh8, mesh1):
    with pytest.raises(UserError, match=r"'batch' has size 6.*data=2×fsdp=2"):
        sharding.put_batch(np.zeros((6, 2)), mesh8)
    assert sharding.put_batch(np.zeros((6, 2)), mesh1).shape == (6, 2)


def test_put_replicated_is_whole_everywhere(mesh8):
    placed = sharding.put_replicated((np.arange(3, dtype=np.int32), 0.5), mesh8)
    for shard in placed[0].addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), [0, 1, 2])
    assert len(placed[0].addressable_shards) == 8
    assert placed[1].shape == () and float(placed[1]) == 0.5


def test_the_constrainer_is_one_object_per_mesh_and_pins(mesh1, mesh8):
    """A static argument of jitted functions: a new object would compile them again."""
    same = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    constrain = sharding.constrainer(mesh8)
    assert sharding.constrainer(same) is constrain
    assert sharding.constrainer(mesh1) is unconstrained
    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    pinned = jax.jit(lambda x: constrain(x, ("batch", "heads")))(x)
    assert pinned.sharding.shard_shape(x.shape) == (2, 2)
    np.testing.assert_array_equal(np.asarray(pinned), x)
    with pytest.raises(UserError, match="activation: logical axis 'heads' has size 3"):
        jax.eval_shape(lambda x: constrain(x, ("batch", "heads")), np.zeros((8, 3)))
