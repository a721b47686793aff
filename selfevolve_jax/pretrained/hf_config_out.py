"""`ModelConfig` to the config.json of a published architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config import ModelConfig, VisionConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained.hf_config import MODEL_TYPES, VISION_LANGUAGE

# A from-scratch model has no longest text; transformers and servers want a number.
DEFAULT_MAX_POSITIONS = 32_768


def hf_config(
    model: ModelConfig,
    max_positions: int = DEFAULT_MAX_POSITIONS,
    special: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The config.json of `model`, in the layout that the hub's checkpoints have and that every
    version of transformers reads.

    max_positions: the longest text in tokens. special: token ids by their keys (bos_token_id, …).
    UserError if no published architecture has this combination of options.
    """
    architecture = _architecture_of(model)
    config = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        **(special or {}),
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "initializer_range": 0.02,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": _rope_scaling(model),
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": 0.0,
        "torch_dtype": model.param_dtype,
        "use_cache": True,
    }
    if architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        config["attention_bias"] = False
    if architecture == "LlamaForCausalLM":
        config["mlp_bias"] = False
    else:
        config["use_sliding_window"] = False
    if architecture == "Qwen3ForCausalLM" or model.head_dim * model.n_heads != model.d_model:
        config["head_dim"] = model.head_dim
    if model.vision:
        config["image_token_id"] = model.vision.image_token
        config["vision_config"] = _vision_dict(model.vision, model.d_model)
    return config


def _architecture_of(model: ModelConfig) -> str:
    kind = (model.qkv_bias, model.qk_norm, bool(model.vision), bool(model.mrope_sections))
    found = {
        (False, False, False, False): "LlamaForCausalLM",
        (True, False, False, False): "Qwen2ForCausalLM",
        (False, True, False, False): "Qwen3ForCausalLM",
        (True, False, True, True): VISION_LANGUAGE,
    }.get(kind)
    if found is None or model.lora.rank:
        raise UserError(
            f"model with qkv_bias={model.qkv_bias}, qk_norm={model.qk_norm}, "
            f"vision={bool(model.vision)}, mrope_sections={model.mrope_sections}, "
            f"lora.rank={model.lora.rank} is of no architecture that Hugging Face knows; those are "
            f"{', '.join(MODEL_TYPES)}."
        )
    return found


def _rope_scaling(model: ModelConfig) -> dict[str, Any] | None:
    scaling, rope = model.rope_scaling, {}
    if scaling:
        rope = {"rope_type": scaling.kind, "factor": float(scaling.factor)}
        if scaling.kind != "linear":
            rope["original_max_position_embeddings"] = scaling.original_max_position
        if scaling.kind == "llama3":
            rope |= {"low_freq_factor": float(scaling.low_freq_factor)}
            rope |= {"high_freq_factor": float(scaling.high_freq_factor)}
        if scaling.kind == "yarn":
            rope |= {"beta_fast": float(scaling.beta_fast), "beta_slow": float(scaling.beta_slow)}
            if scaling.attention_factor is not None:
                rope["attention_factor"] = float(scaling.attention_factor)
    if model.mrope_sections:
        rope = {"type": scaling.kind if scaling else "mrope", **rope}
        rope["mrope_section"] = list(model.mrope_sections)
    return rope or None


def _vision_dict(vision: VisionConfig, width: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "depth": vision.n_layers,
        "hidden_act": "silu",
        "hidden_size": vision.d_model,
        "intermediate_size": vision.d_ff,
        "num_heads": vision.n_heads,
        "in_channels": vision.channels,
        "in_chans": vision.channels,
        "out_hidden_size": width,
        "patch_size": vision.patch,
        "spatial_patch_size": vision.patch,
        "spatial_merge_size": vision.merge,
        "temporal_patch_size": vision.temporal,
        "window_size": vision.window,
        "fullatt_block_indexes": list(vision.full_attention),
        "tokens_per_second": 2,  # of videos; every published checkpoint has this value
    }
