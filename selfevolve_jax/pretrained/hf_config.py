"""A model's own config.json to `ModelConfig`.

What a config says is read or refused, never approximated: an option that would change the numbers
and that the decoder does not have is named in a UserError. Keys that change no number are ignored;
keys that nobody here knows are handed back, so that the caller can say that they were not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.config import ModelConfig, RopeScaling, VisionConfig
from models.vision import ROPE_THETA
from selfevolve_jax.errors import UserError

VISION_LANGUAGE = "Qwen2_5_VLForConditionalGeneration"
MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    VISION_LANGUAGE: "qwen2_5_vl",
}
DTYPES = ("float32", "bfloat16")
# What the architectures' own code takes where a config does not say.
_DEFAULT_THETA = {VISION_LANGUAGE: 1_000_000.0}
_DEFAULT_HEAD_DIM = {"Qwen3ForCausalLM": 128}

# Options with the values that leave the decoder as it is; any other value is refused. Several are of
# sibling architectures, and stand here because a config that sets them means another computation.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("hidden_act", "hidden_activation"), ("silu", None)),
    **dict.fromkeys(
        (
            *("attention_bias", "mlp_bias", "use_sliding_window", "rope_interleaved"),
            *("mrope_interleaved", "use_qk_norm", "is_encoder_decoder", "add_cross_attention"),
        ),
        (False, None),
    ),
    **dict.fromkeys(
        (
            *("pretraining_tp", "partial_rotary_factor", "attention_multiplier", "scale_emb"),
            *("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"),
        ),
        (1, None),
    ),
    **dict.fromkeys(
        (
            *("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"),
            *("num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"),
            *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
            *("clip_qkv", "attention_chunk_size", "no_rope_layer_interval", "no_rope_layers"),
            *("mlp_only_layers", "quantization_config", "auto_map", "compression_config"),
        ),
        (None, 0, [], {}),
    ),
}
_INERT = frozenset(
    (
        *("architectures", "model_type", "_name_or_path", "transformers_version", "torch_dtype"),
        *("dtype", "use_cache", "initializer_range", "attention_dropout", "bos_token_id"),
        *("eos_token_id", "pad_token_id", "max_position_embeddings", "sliding_window"),
        *("max_window_layers", "is_llama_config", "transformers.js_config", "is_decoder"),
        *("vision_start_token_id", "vision_end_token_id", "vision_token_id", "video_token_id"),
        *("output_attentions", "output_hidden_states", "return_dict", "_attn_implementation"),
        *("_attn_implementation_autoset", "unsloth_version", "unsloth_fixed", "chat_template"),
    )
)
_INERT_VISION = frozenset(
    (
        *("model_type", "initializer_range", "torch_dtype", "dtype", "tokens_per_second"),
        *("_attn_implementation_autoset", "transformers_version", "return_dict"),
    )
)


def model_config(
    hf: Mapping[str, Any], where: str = "config.json"
) -> tuple[ModelConfig, tuple[str, ...]]:
    """(the model's sizes, the keys that were not read) of a parsed config.json.

    `param_dtype` and `dtype` are the file's own dtype, float32 where it is missing or is one that
    the decoder does not keep (see `stored_dtype`). UserError, which starts with `where`, for an
    unsupported architecture or option and for a missing or ill-typed value.
    """
    try:
        return _read(hf, where)
    except ValueError as error:  # ModelConfig's own checks
        raise UserError(f"{where}: {error}.") from error


def stored_dtype(hf: Mapping[str, Any]) -> str | None:
    """The dtype that a config says its weights have; None if it does not say."""
    inner = hf.get("text_config") or {}
    for source in (hf, inner):
        for key in ("dtype", "torch_dtype"):
            if source.get(key):
                return str(source[key]).removeprefix("torch.")
    return None


def _read(hf: Mapping[str, Any], where: str) -> tuple[ModelConfig, tuple[str, ...]]:
    architecture = _architecture(hf, where)
    vl = architecture == VISION_LANGUAGE
    text = {k: v for k, v in hf.items() if k not in ("text_config", "vision_config")}
    if vl:
        # Configs of newer transformers hold the decoder's keys inside, older ones beside.
        text |= dict(_mapping(hf, "text_config", where, {}))
        text["tie_word_embeddings"] = bool(
            hf.get("tie_word_embeddings") or text.get("tie_word_embeddings")
        )
        # Inside, newer ones may also repeat these as null.
        text["image_token_id"] = hf.get("image_token_id") or text.get("image_token_id")
    elif "text_config" in hf or "vision_config" in hf:
        raise UserError(f"{where}: {architecture} with text_config or vision_config is unknown.")

    neutral = dict(_NEUTRAL)
    if architecture in ("Qwen2ForCausalLM", VISION_LANGUAGE):
        del neutral["attention_bias"]  # their q, k and v have a bias whatever it says
    _refuse_options(text, neutral, where)
    kinds = set(text.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        raise _unsupported(where, "layer_types", f"[… {sorted(kinds)[0]!r} …]", "full_attention")

    width, heads = _int(text, "hidden_size", where), _int(text, "num_attention_heads", where)
    head_dim = text.get("head_dim") or _DEFAULT_HEAD_DIM.get(architecture)
    if head_dim is None:
        if width % heads:
            raise UserError(
                f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}, "
                "and there is no head_dim."
            )
        head_dim = width // heads
    theta, scaling, sections = _rope(text, architecture, where)
    stored = stored_dtype(hf)
    dtype: Any = stored if stored in DTYPES else "float32"
    unread = {"layer_types", "head_dim", "rope_theta", "rope_scaling", "rope_parameters"}
    unread |= {"original_max_position_embeddings"}
    unread |= _SIZES | _INERT | neutral.keys() | ({"image_token_id"} if vl else set())
    vision, unread_vision = None, []
    if vl:
        vision, unread_vision = _vision(hf, text, width, where)
    config = ModelConfig(
        vocab_size=_int(text, "vocab_size", where),
        d_model=width,
        n_layers=_int(text, "num_hidden_layers", where),
        n_heads=heads,
        n_kv_heads=_int(text, "num_key_value_heads", where, heads),
        head_dim=_int({"head_dim": head_dim}, "head_dim", where),
        d_ff=_int(text, "intermediate_size", where),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_number(text, "rms_norm_eps", where),
        qkv_bias=architecture in ("Qwen2ForCausalLM", VISION_LANGUAGE),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tie_embeddings=bool(text.get("tie_word_embeddings", False)),
        mrope_sections=sections,
        vision=vision,
        dtype=dtype,
        param_dtype=dtype,
    )
    left = sorted(k for k in text if k not in unread and text[k] is not None)
    return config, (*left, *(f"vision_config.{k}" for k in unread_vision))


_SIZES = frozenset(
    (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "intermediate_size", "rms_norm_eps", "tie_word_embeddings"),
    )
)


def _architecture(hf: Mapping[str, Any], where: str) -> str:
    named = hf.get("architectures") or [
        a for a, kind in MODEL_TYPES.items() if kind == hf.get("model_type")
    ]
    if isinstance(named, Sequence) and len(named) == 1 and named[0] in MODEL_TYPES:
        return named[0]
    said = ", ".join(map(str, named)) or f"none, model_type {hf.get('model_type')!r}"
    raise UserError(
        f"{where}: architecture {said} is not supported; supported are {', '.join(MODEL_TYPES)}."
    )


def _rope(
    text: Mapping[str, Any], architecture: str, where: str
) -> tuple[float, RopeScaling | None, tuple[int, int, int] | None]:
    """(theta, scaling, M-RoPE sections), from rope_theta and rope_scaling or from rope_parameters."""
    old, new = text.get("rope_scaling"), text.get("rope_parameters")
    if old and new and old != new:
        raise UserError(f"{where}: rope_scaling {old} and rope_parameters {new} differ. Keep one.")
    name = "rope_scaling" if old else "rope_parameters"
    rope = dict(_mapping({name: old or new}, name, where, {}))
    default = _DEFAULT_THETA.get(architecture, 10_000.0)
    outer = text.get("rope_theta") or default
    theta = _number({"rope_theta": rope.pop("rope_theta", None) or outer}, "rope_theta", where)
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    _refuse_options({k: rope.get(k) for k in _NEUTRAL}, _NEUTRAL, f"{where}: {name}")
    rope = {k: v for k, v in rope.items() if k not in _NEUTRAL}

    sections = None
    if architecture == VISION_LANGUAGE:
        found = rope.pop("mrope_section", None)
        if not isinstance(found, list) or len(found) != 3 or not all(_is_int(n) for n in found):
            raise UserError(f"{where}: {name}.mrope_section {found} must be three numbers.")
        sections = (found[0], found[1], found[2])
        kind = "default" if kind == "mrope" else kind
    if kind == "default":
        scaling, read = None, set()
    elif kind in ("linear", "llama3", "yarn"):
        scaling, read = _scaling(rope, kind, text, where, name)
    else:
        raise _unsupported(where, f"{name} of type", repr(kind), "default, linear, llama3 or yarn")
    strange = sorted(k for k, v in rope.items() if k not in read and v is not None)
    if strange:
        raise UserError(
            f"{where}: {name}.{strange[0]}={rope[strange[0]]!r} is not supported for type {kind!r}."
        )
    return theta, scaling, sections


def _scaling(
    rope: dict[str, Any], kind: Any, text: Mapping[str, Any], where: str, name: str
) -> tuple[RopeScaling, set[str]]:
    where = f"{where}: {name}"
    factor = _number(rope, "factor", where)
    if kind == "linear":
        return RopeScaling(kind, factor), {"factor"}
    # Where the original length is not told it is the model's own (transformers' rule).
    key = "original_max_position_embeddings"
    outer = text.get(key)
    original = _int(rope, key, where, outer or text.get("max_position_embeddings"))
    if outer and outer != original:
        raise UserError(f"{where}: {key} {original} inside and {outer} outside. Keep one.")
    read = {"factor", key}
    if kind == "llama3":
        low, high = "low_freq_factor", "high_freq_factor"
        options = {k: _number(rope, k, where) for k in (low, high)}
        return RopeScaling(kind, factor, original, **options), {*read, low, high}
    if rope.pop("truncate", True) is not True:
        raise _unsupported(where, "truncate", "false", "true")
    attention = rope.get("attention_factor")
    scaling = RopeScaling(
        kind,
        factor,
        original,
        beta_fast=_number(rope, "beta_fast", where, 32.0),
        beta_slow=_number(rope, "beta_slow", where, 1.0),
        attention_factor=None if attention is None else _number(rope, "attention_factor", where),
    )
    return scaling, {*read, "beta_fast", "beta_slow", "attention_factor"}


def _vision(
    hf: Mapping[str, Any], text: Mapping[str, Any], width: int, where: str
) -> tuple[VisionConfig, list[str]]:
    vision = dict(_mapping(hf, "vision_config", where))
    inside = f"{where}: vision_config"
    # The tower's rotary embedding is fixed; newer transformers write it out.
    fixed = [{"rope_theta": ROPE_THETA, "rope_type": kind} for kind in ("axial", "default")]
    neutral = {"hidden_act": ("silu",), "rope_parameters": (None, {}, *fixed)}
    _refuse_options(vision, neutral, inside)
    for key in ("patch_size", "temporal_patch_size"):
        if isinstance(vision.get(key), list) and len(set(vision[key])) == 1:
            vision[key] = vision[key][0]
    out = _int(vision, "out_hidden_size", inside)
    if out != width:
        raise UserError(f"{inside}.out_hidden_size {out} is not the decoder's hidden_size {width}.")
    channels = {int(vision[k]) for k in ("in_channels", "in_chans") if vision.get(k)} or {3}
    patches = {_int(vision, k, inside, 0) for k in ("patch_size", "spatial_patch_size")} - {0}
    if len(channels) > 1 or len(patches) > 1:
        raise UserError(f"{inside} contradicts itself: channels {channels}, patch sizes {patches}.")
    full = vision.get("fullatt_block_indexes")
    if not isinstance(full, list) or not all(_is_int(n) for n in full):
        raise UserError(f"{inside}.fullatt_block_indexes {full} must be a list of layer numbers.")
    config = VisionConfig(
        d_model=_int(vision, "hidden_size", inside),
        n_layers=_int(vision, "depth", inside),
        n_heads=_int(vision, "num_heads", inside),
        d_ff=_int(vision, "intermediate_size", inside),
        image_token=_int(text, "image_token_id", where),
        full_attention=tuple(full),
        patch=_int(vision, "patch_size", inside),
        temporal=_int(vision, "temporal_patch_size", inside),
        merge=_int(vision, "spatial_merge_size", inside),
        window=_int(vision, "window_size", inside),
        channels=channels.pop(),
    )
    read = {
        *("hidden_size", "depth", "num_heads", "intermediate_size", "patch_size", "hidden_act"),
        *("spatial_patch_size", "temporal_patch_size", "spatial_merge_size", "window_size"),
        *("in_channels", "in_chans", "out_hidden_size", "fullatt_block_indexes"),
        *("rope_parameters", *_INERT_VISION),
    }
    return config, sorted(k for k in vision if k not in read and vision[k] is not None)


def _refuse_options(
    options: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], where: str
) -> None:
    for key, allowed in neutral.items():
        if key in options and options[key] not in allowed:
            raise _unsupported(where, key, repr(options[key]), repr(allowed[0]))


def _unsupported(where: str, key: str, value: str, supported: str) -> UserError:
    return UserError(f"{where}: {key} {value} is not supported (only {supported}).")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _int(options: Mapping[str, Any], key: str, where: str, default: Any = None) -> int:
    value = options.get(key)
    value = default if value is None else value
    if not _is_int(value):
        said = "is missing" if value is None else f"is {value!r}"
        raise UserError(f"{where}: {key} {said}; it must be a whole number.")
    return value


def _number(options: Mapping[str, Any], key: str, where: str, default: Any = None) -> float:
    value = options.get(key)
    value = default if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        said = "is missing" if value is None else f"is {value!r}"
        raise UserError(f"{where}: {key} {said}; it must be a number.")
    return float(value)


def _mapping(
    options: Mapping[str, Any], key: str, where: str, default: Any = None
) -> Mapping[str, Any]:
    value = options.get(key)
    value = default if value is None else value
    if not isinstance(value, Mapping):
        said = "is missing" if value is None else f"is {value!r}"
        raise UserError(f"{where}: {key} {said}; it must be an object.")
    return value
