"""A folder of Hugging Face safetensors to `decoder.Params`, slice by slice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (safetensors finds numpy's bfloat16 through it)
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from models import decoder
from models.config import ModelConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained import arrays, names
from selfevolve_jax.pretrained.hf_config import DTYPES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. dtype: numpy's name, or safetensors' own for what is no plain float."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def load_params(folder: Path, cfg: ModelConfig, mesh: Mesh, cast: bool) -> decoder.Params:
    """The weights in `cfg.param_dtype`, on the shards that the rules give them on `mesh`.

    cast: whether tensors of other float dtypes are cast to it; else they are refused. UserError
    naming the file or tensor for a missing or damaged file, a missing, left-over or ill-shaped
    tensor, and a head that differs from the embedding it is said to be tied to.
    """
    stored = stored_tensors(folder)
    _check(stored, cfg, folder, cast)

    def read(name: str, rows: slice, columns: slice) -> np.ndarray:
        tensor = stored[name]
        # Opened anew for each block: the pages of an open file stay in the process's memory.
        with safe_open(tensor.file, "np") as file:
            part = file.get_slice(tensor.name)
            if len(tensor.shape) == 2:
                return part[rows, columns]
            block = part[rows]
        return block.reshape(len(block), -1)[:, columns]

    if cfg.tie_embeddings and names.HEAD in stored:
        _check_tied(stored, read, folder)
    return arrays.fill(cfg, mesh, read)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. UserError if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing. Fix: download the model again.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Fix: download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: not a JSON object. Fix: download it again.")
    return found


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a single or sharded checkpoint by its published name, with no data read."""
    files = _files(folder)
    found: dict[str, Stored] = {}
    for path in files:
        try:
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    part = file.get_slice(name)
                    dtype: str = part.get_dtype()  # pyright: ignore
                    tensor = Stored(path, name, tuple(part.get_shape()), _NAMES.get(dtype, dtype))
                    other = found.setdefault(names.published(name), tensor)
                    if other is not tensor:
                        raise UserError(
                            f"tensor {name} of {path} stands a second time in {other.file} as "
                            f"{other.name}. Remove one of them."
                        )
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is damaged or cut short: {str(error).splitlines()[0]}. Download it again."
            ) from error
    if not found:
        raise UserError(f"{folder} holds no tensors. Download the model again.")
    return found


def file_dtype(stored: dict[str, Stored]) -> str:
    """The dtype of the embedding, for a config that does not say what the weights' is."""
    return stored[names.EMBED].dtype if names.EMBED in stored else next(iter(stored.values())).dtype


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise UserError(f"{folder / INDEX} has no weight_map. Fix: download it again.")
        shards = sorted(set(map(str, index.values())))
        missing = [s for s in shards if not (folder / s).is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of the {len(shards)} files that {INDEX} names: "
                f"{_some(missing)}. Download them."
            )
        return [folder / s for s in shards]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    others = sorted(p.name for ending in ("*.bin", "*.pth", "*.pt") for p in folder.glob(ending))
    hint = f" It holds {_some(others)}: pickled weights, which are not read." if others else ""
    raise UserError(
        f"{folder} holds neither {SINGLE} nor {INDEX}.{hint} Fix: get a safetensors version of the "
        "model."
    )


def _check(stored: dict[str, Stored], cfg: ModelConfig, folder: Path, cast: bool) -> None:
    wanted = names.tensors(cfg)
    missing = [name for name in wanted if name not in stored]
    if missing:
        hint = (
            " Its config.json says tie_word_embeddings false."
            if missing == [names.HEAD]
            else " Its config.json may be another model's, or a download is not complete."
        )
        raise UserError(f"{folder} lacks the tensor(s) {_some(missing)}.{hint}")
    spare = {names.HEAD} if cfg.tie_embeddings else set()
    left = sorted(n for n in stored.keys() - wanted.keys() - spare if not names.inert(n))
    if left:
        raise UserError(
            f"{folder} holds tensor(s) that its config.json has no place for: {_some(left)}. The "
            "model computes something that is not supported here."
        )
    for name, (_, _, weight) in wanted.items():
        tensor = stored[name]
        if tensor.shape != weight.shape:
            raise UserError(
                f"tensor {tensor.name} of {tensor.file} has shape {tensor.shape}; its config.json "
                f"asks for {weight.shape}."
            )
        if tensor.dtype not in _NAMES.values():
            raise UserError(
                f"tensor {tensor.name} of {tensor.file} is {tensor.dtype}: quantised weights are "
                "not supported. Get the model in bfloat16 or float32."
            )
        if tensor.dtype != cfg.param_dtype and not cast:
            fix = (
                "Ask for one dtype for all: bfloat16 or float32."
                if tensor.dtype in DTYPES
                else f"{tensor.dtype} is not kept here: ask for bfloat16 or float32."
            )
            raise UserError(
                f"tensor {tensor.name} of {tensor.file} is {tensor.dtype} where config.json says "
                f"{cfg.param_dtype}. {fix}"
            )


def _check_tied(stored: dict[str, Stored], read: arrays.Read, folder: Path) -> None:
    head, embed = stored[names.HEAD], stored[names.EMBED]
    same = (head.shape, head.dtype) == (embed.shape, embed.dtype)
    height = max(1, arrays.BLOCK_BYTES // (4 * embed.shape[1]))
    for start in range(0, embed.shape[0], height) if same else ():
        rows, columns = slice(start, min(start + height, embed.shape[0])), slice(0, embed.shape[1])
        one, other = read(names.HEAD, rows, columns), read(names.EMBED, rows, columns)
        same = same and np.array_equal(one.view(np.uint8), other.view(np.uint8))
    if not same:
        raise UserError(
            f"{folder}: {head.name} differs from {embed.name}, although config.json says "
            "tie_word_embeddings true. Set it to false if the model has a head of its own."
        )


def _some(found: list[str]) -> str:
    shown = ", ".join(found[:3])
    return shown + (f" and {len(found) - 3} more" if len(found) > 3 else "")
