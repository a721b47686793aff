"""A policy to a folder that transformers, vLLM and others load: safetensors, config and tokenizer.

Tensors come from the devices one at a time and go to the file at once: the format is a length, a JSON
header of shapes and offsets, which are known beforehand, and the bytes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from models import decoder, lora
from selfevolve_jax import run_dir, sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.pretrained import names
from selfevolve_jax.pretrained.hf_config_out import DEFAULT_MAX_POSITIONS, hf_config
from selfevolve_jax.pretrained.load import INDEX, SINGLE
from selfevolve_jax.pretrained.preprocessor import preprocessor_config

SHARD_BYTES = 5_000_000_000  # what transformers cuts at, too
_CHUNK_BYTES = 16 << 20
_KINDS = {"float32": "F32", "bfloat16": "BF16"}
_VISION_TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "video_token_id": "<|video_pad|>",
}


def export(
    policy: Policy,
    dst: str | os.PathLike[str],
    dtype: Literal["float32", "bfloat16"] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes `policy` to the new local folder `dst`, whole or not at all; adapters are merged.

    dtype: of the weights there, the policy's own if None. UserError if `dst` exists, or if the
    policy is of no architecture that Hugging Face knows; DiskError if the disk refuses.
    """
    params, model = lora.merge(policy.params, policy.model)
    model = replace(model, param_dtype=dtype or model.param_dtype)
    special = special_tokens(policy)
    longest = policy.tokenizer.model_max_length
    # A tokenizer that knows no limit says 1e30.
    config = hf_config(
        model, longest if longest < 1e9 else DEFAULT_MAX_POSITIONS, special | _vision(policy)
    )
    with new_folder(dst) as folder:
        if jax.process_index() == 0:
            policy.tokenizer.save_pretrained(str(folder))
            _write_json(folder / "config.json", config)
            _write_json(folder / "generation_config.json", special)
            if model.vision:
                assert policy.images is not None
                _write_json(
                    folder / "preprocessor_config.json",
                    preprocessor_config(policy.images, model.vision),
                )
        _write_weights(params, model, folder, shard_bytes)
    return Path(dst)


@contextlib.contextmanager
def new_folder(dst: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside the local `dst` to write into, which becomes `dst` at the end and goes after
    a failure.

    UserError if `dst` exists; DiskError if the disk refuses.
    """
    if run_dir.is_remote(dst):
        raise UserError(f"{os.fspath(dst)} is remote. Write to a local folder, and copy that.")
    dst = Path(os.path.abspath(dst))
    if dst.exists():
        raise UserError(f"{dst} exists. Give another place, or remove it.")
    folder = dst.with_name(f".{dst.name}.tmp")
    first = jax.process_index() == 0
    try:
        if first:
            shutil.rmtree(folder, ignore_errors=True)  # left by one that was killed
            folder.mkdir(parents=True)
        _meet("new folder")
        yield folder
        _meet("written")
        if first:
            os.replace(folder, dst)
        _meet("renamed")
    except BaseException as error:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (*run_dir.DISK_REASONS, errno.ENOTDIR):
            raise DiskError(
                f"cannot write {dst}: {os.strerror(error.errno or 0)}. Nothing is left there; free "
                "space or permissions, and run it again."
            ) from error
        raise


def special_tokens(policy: Policy) -> dict[str, Any]:
    """bos, eos and pad ids by the keys of config.json, where there are such tokens. A missing bos is
    told: transformers would else take its architecture's default for it."""
    stops = list(policy.stop_tokens)
    found = {
        "bos_token_id": policy.tokenizer.bos_token_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": policy.tokenizer.pad_token_id,
    }
    return {k: v for k, v in found.items() if v is not None or k == "bos_token_id"}


def _vision(policy: Policy) -> dict[str, int]:
    if not policy.model.vision:
        return {}
    vocabulary = policy.tokenizer.get_vocab()
    absent = [token for token in _VISION_TOKENS.values() if token not in vocabulary]
    if absent:
        raise UserError(
            f"the tokenizer has no {', '.join(absent)}, which Qwen2.5-VL's config.json must name. "
            "Add it to the policy's tokenizer."
        )
    return {key: vocabulary[token] for key, token in _VISION_TOKENS.items()}


def _write_weights(params: decoder.Params, model: Any, folder: Path, shard_bytes: int) -> None:
    """model.safetensors, or shards of at most `shard_bytes` each (a larger tensor has its own)."""
    wanted = names.tensors(model)
    leaves = {
        ".".join(key.name for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    item = jnp.dtype(model.param_dtype).itemsize
    sizes = {name: math.prod(weight.shape) * item for name, (_, _, weight) in wanted.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)

    def tensors(shard: list[str]) -> Iterator[np.ndarray]:
        for name in shard:
            path, layer, weight = wanted[name]
            yield _to_host(leaves[path], layer, weight)

    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else [SINGLE]
    for file, shard in zip(files, shards, strict=True):
        shapes = {name: wanted[name][2].shape for name in shard}
        write_safetensors(folder / file, shapes, model.param_dtype, tensors(shard))
    if len(files) > 1 and jax.process_index() == 0:
        index = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
        record = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
        _write_json(folder / INDEX, record)


def write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, tensors: Iterator[np.ndarray]
) -> None:
    """One safetensors file from arrays that come one at a time, in the order of `shapes`, and are
    cast to `dtype`. Process 0 writes; the others only take the arrays."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * jnp.dtype(dtype).itemsize
        header[name] = {"dtype": _KINDS[dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's own padding, so that the data are aligned
    if jax.process_index() != 0:
        for _ in tensors:
            pass
        return
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape, array in zip(shapes.values(), tensors, strict=True):
            assert array.shape == shape, (array.shape, shape)
            height = max(1, _CHUNK_BYTES // (4 * math.prod(shape[1:])))
            for i in range(0, len(array), height):
                # `order` matters: a transposed array would be written as it lies in memory
                part = np.ascontiguousarray(array[i : i + height]).astype(dtype, order="C")
                file.write(part.view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


@jax.jit
def _layer(x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)


_copy = jax.jit(jnp.copy)


def _to_host(leaf: jax.Array, layer: int | None, weight: names.Weight) -> np.ndarray:
    """One tensor as Hugging Face shapes it; a view of it may be transposed in memory."""
    # Of a copy, as an array keeps what was fetched of it for as long as it lives.
    x = sharding.to_host(_copy(leaf) if layer is None else _layer(leaf, np.int32(layer)))
    if not weight.turned:
        return x.reshape(weight.shape)
    turned = x.reshape(-1, weight.shape[0]).T
    return turned if len(weight.shape) == 2 else turned.reshape(weight.shape)


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n")


def _meet(name: str) -> None:
    """All processes wait for each other, where there are several."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"export: {name}")
