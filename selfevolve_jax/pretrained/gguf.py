"""A policy from a GGUF file: sizes, weights and tokenizer, all from that one file.

Weights are dequantised block by block on their way to the devices, so that the host holds a few rows
of one tensor at a time. What the file says and this decoder cannot do is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from models import rope
from models.config import ModelConfig, RopeScaling
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained import arrays, names
from selfevolve_jax.pretrained.gguf_tokenizer import read_tokenizer

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
ARCHITECTURES = ("llama", "qwen2", "qwen3")
EMBED, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"

# GGUF's name of every Hugging Face tensor; {} is the layer's number.
_NAMES = {
    names.EMBED: EMBED,
    names.HEAD: HEAD,
    "model.norm.weight": "output_norm.weight",
    "model.layers.{}.input_layernorm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.self_attn.q_proj.weight": "blk.{}.attn_q.weight",
    "model.layers.{}.self_attn.k_proj.weight": "blk.{}.attn_k.weight",
    "model.layers.{}.self_attn.v_proj.weight": "blk.{}.attn_v.weight",
    "model.layers.{}.self_attn.o_proj.weight": "blk.{}.attn_output.weight",
    "model.layers.{}.self_attn.q_proj.bias": "blk.{}.attn_q.bias",
    "model.layers.{}.self_attn.k_proj.bias": "blk.{}.attn_k.bias",
    "model.layers.{}.self_attn.v_proj.bias": "blk.{}.attn_v.bias",
    "model.layers.{}.self_attn.q_norm.weight": "blk.{}.attn_q_norm.weight",
    "model.layers.{}.self_attn.k_norm.weight": "blk.{}.attn_k_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blk.{}.ffn_norm.weight",
    "model.layers.{}.mlp.gate_proj.weight": "blk.{}.ffn_gate.weight",
    "model.layers.{}.mlp.up_proj.weight": "blk.{}.ffn_up.weight",
    "model.layers.{}.mlp.down_proj.weight": "blk.{}.ffn_down.weight",
}
# Keys after "ARCHITECTURE." with the values that leave the decoder as it is. A key that is neither
# here nor read means another computation, or one that nobody here knows: refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
}
_INERT = ("tensor_data_layout", "rope.scaling.finetuned")


def load_gguf(
    path: str | os.PathLike[str],
    mesh: Mesh,
    param_dtype: Literal["float32", "bfloat16"] | None = None,
) -> Policy:
    """The policy in the GGUF file `path`, its weights on the shards that the rules give them on
    `mesh`, in `param_dtype` (float32 if None); matrix products are float32.

    UserError naming the file and what in it is missing, damaged or unsupported.
    """
    where = os.fspath(path)
    fields, stored = _contents(where)
    model = replace(read_config(fields, stored, where), param_dtype=param_dtype or "float32")
    tensors = _check(stored, model, where)
    tokenizer, stops = read_tokenizer(fields, where)
    if (known := len(fields["tokenizer.ggml.tokens"])) > model.vocab_size:
        raise UserError(
            f"{where}: the tokenizer has {known} tokens, and {EMBED} only {model.vocab_size} rows. "
            "They are of different models."
        )
    tokenizer.model_max_length = int(fields[f"{fields['general.architecture']}.context_length"])
    orders = _orders(fields["general.architecture"], model)

    def read(name: str, rows: slice, columns: slice) -> np.ndarray:
        tensor = tensors[name]
        order = orders.get(name.rpartition("self_attn.")[2])
        data = tensor.data[rows] if order is None else tensor.data[order[rows]]
        values = dequantize(data, tensor.tensor_type)
        return values if values.ndim == 1 else values[:, columns]

    return Policy(arrays.fill(model, mesh, read), model, tokenizer, stops, 0)


def read_sizes(path: str | os.PathLike[str]) -> ModelConfig:
    """The sizes of the policy in the GGUF file `path`, without its weights."""
    where = os.fspath(path)
    return read_config(*_contents(where), where)


def _contents(where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metadata by key, tensors by name); tensors are read when they are looked at."""
    if not os.path.isfile(where):
        raise UserError(f"{where} does not exist. Give a GGUF file.")
    with open(where, "rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise UserError(f"{where} is no GGUF file: it begins with {magic!r}.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(where)
        fields = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # whatever numpy says of bytes that are not there, or are no text
        raise UserError(
            f"{where} is damaged or cut short at {os.path.getsize(where)} bytes: {error}. Get it "
            "again."
        ) from error
    if reader.byte_order != "I":
        raise UserError(f"{where} is of the other byte order, which is not supported.")
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def dequantize(data: np.ndarray, kind: Any) -> np.ndarray:
    """Whole rows of a tensor, as `GGUFReader` gives them, to float32."""
    from gguf import quants

    return np.asarray(quants.dequantize(data, kind), np.float32)


def read_config(fields: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> ModelConfig:
    """The sizes in the metadata `fields`; `stored` are the file's tensors by name. UserError for
    an architecture or an option that is not supported, or a value that is missing."""
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{where}: architecture {kind!r} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}."
        )
    if fields.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{where} is one of {fields['split.count']} parts. Join them first: llama-gguf-split "
            "--merge."
        )
    options = {k.removeprefix(f"{kind}."): v for k, v in fields.items() if k.startswith(f"{kind}.")}
    unread = dict(options)

    def number(key: str, of: type, *default: Any) -> Any:
        value = unread.pop(key, *default)
        if default and value == default[0]:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float) if of is float else int):
            raise UserError(f"{where}: {kind}.{key} is {value!r:.60}; it must be one number.")
        # A float32 there: the shortest number that rounds to it is the one that was meant.
        return value if of is int else float(str(np.float32(value)))

    try:
        heads, width = number("attention.head_count", int), number("embedding_length", int)
        head_dim = number("attention.key_length", int, width // heads)
        same = {
            "attention.value_length": number("attention.value_length", int, head_dim),
            "rope.dimension_count": number("rope.dimension_count", int, head_dim),
        }
        number("context_length", int)
        sizes = {
            "d_model": width,
            "n_layers": number("block_count", int),
            "n_heads": heads,
            "n_kv_heads": number("attention.head_count_kv", int, heads),
            "head_dim": head_dim,
            "d_ff": number("feed_forward_length", int),
            "rope_theta": number("rope.freq_base", float, 10_000.0),
            "norm_eps": number("attention.layer_norm_rms_epsilon", float),
        }
        for key, value in same.items():
            if value != head_dim:
                raise UserError(
                    f"{where}: {kind}.{key} {value} is not the head size {head_dim}: unsupported."
                )
        sizes["rope_scaling"] = _scaling(unread, number, where, kind)
        sizes["vocab_size"] = _vocab_size(unread.pop("vocab_size", None), stored, where)
    except KeyError as error:
        raise UserError(f"{where}: {kind}.{error.args[0]} is missing.") from None
    for key, value in unread.items():
        if key not in _INERT and value not in _NEUTRAL.get(key, ()):
            raise UserError(f"{where}: {kind}.{key}={value!r:.60} is not supported.")
    try:
        model = ModelConfig(
            **sizes,
            qkv_bias=kind == "qwen2",
            qk_norm=kind == "qwen3",
            tie_embeddings=HEAD not in stored,
        )
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from error
    if ROPE_FACTORS in stored:
        model = replace(model, rope_scaling=_llama3(stored[ROPE_FACTORS], model, where))
    return model


def _scaling(unread: dict[str, Any], number: Any, where: str, kind: str) -> RopeScaling | None:
    name, base = unread.pop("rope.scaling.type", "none"), "rope.scaling."
    if name == "none":
        return None
    if name not in ("linear", "yarn"):
        raise UserError(
            f"{where}: {kind}.{base}type {name!r} is not supported (only none, linear and yarn)."
        )
    factor = number(base + "factor", float)
    if name == "linear":
        return RopeScaling("linear", factor)
    return RopeScaling(
        "yarn",
        factor,
        number(base + "original_context_length", int),
        beta_fast=number(base + "yarn_beta_fast", float, 32.0),
        beta_slow=number(base + "yarn_beta_slow", float, 1.0),
    )


def _vocab_size(told: Any, stored: Mapping[str, Any], where: str) -> int:
    if EMBED not in stored:
        raise UserError(f"{where} lacks the tensor {EMBED}. It is no language model, or cut short.")
    rows = int(stored[EMBED].shape[-1])
    if told is not None and told != rows:
        raise UserError(f"{where}: vocab_size is {told}, but {EMBED} has {rows} rows. Damaged.")
    return rows


def _llama3(tensor: Any, model: ModelConfig, where: str) -> RopeScaling:
    """Llama 3's frequency scaling, which a GGUF file holds as the divisor of each frequency. All its
    releases have the same ramp, so the largest divisor tells the rest; that is checked."""
    K = model.head_dim
    if tensor.tensor_type.name != "F32" or tensor.data.shape != (K // 2,):
        raise UserError(
            f"{where}: tensor {ROPE_FACTORS} is {tensor.tensor_type.name} of shape "
            f"{tensor.data.shape}; it must be F32 of shape ({K // 2},)."
        )
    factors = np.asarray(tensor.data)
    scaling = RopeScaling("llama3", float(factors.max()), original_max_position=8192)
    plain, scaled = (rope.frequencies(K, model.rope_theta, s)[0] for s in (None, scaling))
    off = np.abs(np.asarray(plain) / np.asarray(scaled) / factors - 1).max()
    if model.rope_scaling is not None or not off < 1e-3:
        raise UserError(
            f"{where}: the frequencies of {ROPE_FACTORS} are not those of Llama 3 (factor "
            f"{scaling.factor:g} over 8192 positions); they differ by up to {off:.1%}. Unsupported."
        )
    return scaling


def _orders(architecture: str, model: ModelConfig) -> dict[str, np.ndarray]:
    """Which row of the file is each row of Hugging Face's q and k matrices. llama.cpp turns
    neighbouring pairs for this architecture, Hugging Face halves: its row (half, pair) of a head
    stands there as (pair, half)."""
    if architecture != "llama":
        return {}
    K = model.head_dim
    inside = np.arange(K).reshape(K // 2, 2).T.reshape(-1)

    def order(heads: int) -> np.ndarray:
        return (np.arange(heads)[:, None] * K + inside).reshape(-1)

    return {"q_proj.weight": order(model.n_heads), "k_proj.weight": order(model.n_kv_heads)}


def _check(stored: Mapping[str, Any], model: ModelConfig, where: str) -> dict[str, Any]:
    """The file's tensors by their Hugging Face names, one for each that the model has."""
    found = {}
    for name, (_, layer, weight) in names.tensors(model).items():
        pattern = weight.name if layer is not None else name
        there = _NAMES[pattern].format(layer)
        if there not in stored:
            raise UserError(f"{where} lacks the tensor {there}. It may be cut short.")
        tensor = stored[there]
        shape = tuple(int(n) for n in reversed(tensor.shape))
        if shape != weight.shape:
            raise UserError(
                f"{where}: tensor {there} has shape {shape}; its metadata ask for {weight.shape}."
            )
        if tensor.tensor_type.name not in TYPES:
            raise UserError(
                f"{where}: tensor {there} is {tensor.tensor_type.name}, which is not supported; "
                f"supported are {', '.join(TYPES)}."
            )
        found[name] = tensor
    taken = {tensor.name for tensor in found.values()} | {ROPE_FACTORS}
    left = sorted(stored.keys() - taken)
    if left:
        raise UserError(
            f"{where} holds {len(left)} tensor(s) that its architecture has no place for: "
            f"{', '.join(left[:3])}. The model computes something that is not supported here."
        )
    return found
