"""Policies out: the same bytes after a round trip, files that others read, nothing half-written."""

import errno
import json
import os
import struct
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig

from models import decoder, lora
from models.config import LoraConfig, ModelConfig
from selfevolve_jax import checkpoint, sharding
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.pretrained import export, source
from selfevolve_jax.tasks import arithmetic
from tests.pretrained import folders


def raw(folder):
    """Every tensor's dtype, shape and bytes, from one file or several."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                assert name not in found
                found[name] = (opened.get_slice(name).get_dtype(), tensor.shape, tensor.tobytes())
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", folders.CONFIGS)
def test_there_and_back_is_the_same_to_the_bit(name, dtype, tmp_path, mesh8):
    """Hugging Face, eight devices, Orbax, eight devices laid out otherwise, Hugging Face."""
    folder, hf, _ = folders.family(tmp_path / "hf", name, dtype, shards=2)
    first = source.load_policy(folder, mesh8)
    checkpoint.save_policy(first, tmp_path / "policy")
    other = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, tensor=2))
    policy = source.load_policy(tmp_path / "policy", other)
    assert policy.model == first.model and policy.images == first.images
    assert policy.stop_tokens == first.stop_tokens and policy.step == 0
    again = export.export(policy, tmp_path / "again")
    assert raw(again) == raw(folder)
    assert AutoTokenizer.from_pretrained(again).get_vocab() == policy.tokenizer.get_vocab()
    config = json.loads((again / "config.json").read_text())
    same = hf.keys() - {"torch_dtype", "vision_config", "eos_token_id", "bos_token_id"}
    assert {k: config[k] for k in same} == {k: hf[k] for k in same}
    assert (config["torch_dtype"], config["eos_token_id"]) == (dtype, [1, 2])
    read = AutoConfig.from_pretrained(again)
    assert read.get_text_config().max_position_embeddings == 512
    assert GenerationConfig.from_pretrained(again).eos_token_id == [1, 2]
    third = source.load_policy(again, other)
    assert (third.model, third.stop_tokens, third.images) == (
        *(policy.model, policy.stop_tokens),
        policy.images,
    )


def test_the_preprocessor_is_one_that_transformers_uses_as_ours(tmp_path, mesh1):
    folder, _, _ = folders.family(tmp_path / "hf", "qwen2.5-vl")
    policy = source.load_policy(folder, mesh1)
    again = export.export(policy, tmp_path / "again")
    theirs = AutoImageProcessor.from_pretrained(again)
    assert (theirs.patch_size, theirs.temporal_patch_size, theirs.merge_size) == (4, 2, 2)
    assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (64, 4096)
    assert tuple(theirs.image_mean) == policy.images.mean
    assert tuple(theirs.image_std) == policy.images.std
    assert (int(theirs.resample), theirs.do_resize, theirs.do_convert_rgb) == (3, True, True)


@pytest.fixture(scope="module")
def policy(tmp_path_factory, mesh8):
    folder, _, _ = folders.family(tmp_path_factory.mktemp("hf"), "llama", "float32")
    return source.load_policy(folder, mesh8)


def test_shards_are_cut_where_asked_and_indexed(policy, tmp_path):
    limit = 20_000
    folder = export.export(policy, tmp_path / "out", shard_bytes=limit)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert [f.name for f in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    total = 0
    for file in files:
        sizes = [x.nbytes for x in load_file(file).values()]
        assert sum(sizes) <= limit
        total += sum(sizes)
        assert {n for n, f in index["weight_map"].items() if f == file.name} == set(load_file(file))
    assert index["metadata"]["total_size"] == total
    assert raw(folder) == raw(export.export(policy, tmp_path / "one"))
    assert [f.name for f in (tmp_path / "one").glob("*.safetensors*")] == ["model.safetensors"]


def test_a_cast_on_the_way_out(policy, tmp_path):
    folder = export.export(policy, tmp_path / "out", "bfloat16")
    out = load_file(folder / "model.safetensors")
    whole = np.asarray(policy.params.layers.down[1]).T
    want = whole.astype(ml_dtypes.bfloat16)
    assert out["model.layers.1.mlp.down_proj.weight"].tobytes() == want.tobytes()
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert policy.model.param_dtype == "float32"


def test_adapters_are_merged(policy, tmp_path, mesh1):
    cfg = replace(policy.model, lora=LoraConfig(rank=2, alpha=3.0, targets=("q", "down")))
    specs, rng = decoder.abstract_params(cfg), np.random.default_rng(1)
    drawn = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), specs)
    params = jax.device_put(drawn, sharding.tree_shardings(specs, mesh1))
    adapted = replace(policy, params=params, model=cfg)
    out = load_file(export.export(adapted, tmp_path / "out") / "model.safetensors")
    layers = drawn.layers
    a, b = layers.lora["down"].a[1], layers.lora["down"].b[1]  # [F, r], [r, D]
    want = (layers.down[1] + 1.5 * a @ b).T
    np.testing.assert_allclose(
        out["model.layers.1.mlp.down_proj.weight"], want, rtol=1e-5, atol=1e-5
    )
    a, b = layers.lora["q"].a[0], layers.lora["q"].b[0].reshape(2, -1)  # [D, r], [r, HK]
    want = layers.q[0].reshape(32, -1) + 1.5 * a @ b
    np.testing.assert_allclose(
        out["model.layers.0.self_attn.q_proj.weight"], want.T, rtol=1e-5, atol=1e-5
    )
    assert not [name for name in out if "lora" in name]
    assert lora.merge(params, cfg)[1] == policy.model


def test_a_file_is_what_the_format_says(tmp_path):
    """Length, header, data; and safetensors reads the arrays, transposed and empty ones too."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(3, 2).T,
        "b": np.float32([-0.0, np.inf, 1e-45]),
        "empty": np.zeros((0, 4), np.float32),
    }
    file = tmp_path / "x.safetensors"
    shapes = {k: v.shape for k, v in arrays.items()}
    export.write_safetensors(file, shapes, "float32", iter(arrays.values()))
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert header["__metadata__"] == {"format": "pt"}
    assert len(data) == 8 + length + 36
    for name, array in load_file(file).items():
        assert array.shape == arrays[name].shape
        assert array.tobytes() == np.ascontiguousarray(arrays[name]).tobytes()


def test_a_large_tensor_goes_out_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_CHUNK_BYTES", 50)
    x = np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
    export.write_safetensors(tmp_path / "x", {"x": (11, 7)}, "float32", iter([x.T]))
    np.testing.assert_array_equal(load_file(tmp_path / "x")["x"], x.T)


def test_a_policy_trained_from_scratch_goes_out_too(tmp_path, mesh1):
    """Its tokenizer knows no longest text."""
    model = ModelConfig(16, 32, 2, 4, 2, 8, 48)
    tokenizer = arithmetic.tokenizer()
    specs, rng = decoder.abstract_params(model), np.random.default_rng(0)
    drawn = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), specs)
    params = jax.device_put(drawn, sharding.tree_shardings(specs, mesh1))
    stops = (15,)
    mine = checkpoint.Policy(params, model, tokenizer, stops, 7)
    again = source.load_policy(export.export(mine, tmp_path / "out"), mesh1)
    jax.tree.map(np.testing.assert_array_equal, params, again.params)
    assert again.model == model and again.stop_tokens == stops
    assert again.tokenizer.model_max_length == 32_768


# --- nothing half-written ---


def test_what_exists_is_refused(policy, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out exists\. Give another place"):
        export.export(policy, tmp_path / "out")
    with pytest.raises(UserError, match=r"gs://bucket/x is remote"):
        export.export(policy, "gs://bucket/x")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("after", [0, 1, 10, 25])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_nothing(policy, tmp_path, monkeypatch, after, kind):
    real, calls = export._to_host, iter(range(1000))
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if kind is OSError else kind()

    def breaks(*arguments):
        if next(calls) == after:
            raise error
        return real(*arguments)

    monkeypatch.setattr(export, "_to_host", breaks)
    expected = DiskError if kind is OSError else kind
    with pytest.raises(expected) as caught:
        export.export(policy, tmp_path / "out")
    if kind is OSError:
        assert "No space left on device. Nothing is left there" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_gives_way(policy, tmp_path):
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "model-00009-of-00009.safetensors").write_bytes(b"half")
    folder = export.export(policy, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_a_vision_language_policy_whose_tokenizer_lacks_the_frame_of_images(tmp_path, mesh1):
    folder, _, _ = folders.family(tmp_path / "hf", "qwen2.5-vl")
    mine = source.load_policy(folder, mesh1)
    words = ["<unk>", "<|im_end|>", "<|endoftext|>", "<|image_pad|>"]
    with pytest.raises(UserError, match=r"no <\|vision_start\|>, <\|vision_end\|>"):
        export.export(replace(mine, tokenizer=folders.tokenizer(words)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
