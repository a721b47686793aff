"""Tiny Hugging Face folders of every family, written by hand: names and shapes as published."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
# id 1 ends a turn, 2 a text; the vision tokens are 3 to 6
WORDS = ("<unk>", "<|im_end|>", "<|endoftext|>", *VISION_TOKENS, *"abcdefghijklmnopqrs")
VOCABULARY = 32

_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
CONFIGS = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": False,
        **_COMMON,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
    "smollm2": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": True,
        **_COMMON,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": False,
        **_COMMON,
    },
    "qwen2-tied": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        **_COMMON,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "tie_word_embeddings": False,
        **_COMMON,
        "head_dim": 12,
    },
    "qwen2.5-vl": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        **_COMMON,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
        "vision_config": {
            "depth": 4,
            "hidden_act": "silu",
            "hidden_size": 16,
            "intermediate_size": 20,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "spatial_patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    },
}
CONFIGS["qwen2.5-vl-tied"] = CONFIGS["qwen2.5-vl"] | {"tie_word_embeddings": True}
PREPROCESSOR = {
    "min_pixels": 64,
    "max_pixels": 4096,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def shapes(hf: dict) -> dict[str, tuple[int, ...]]:
    """Every tensor that such a checkpoint has on the hub, with its shape."""
    D, F, V = hf["hidden_size"], hf["intermediate_size"], hf["vocab_size"]
    H, N = hf["num_attention_heads"], hf["num_key_value_heads"]
    K = hf.get("head_dim", D // H)
    kind = hf["model_type"]
    found = {"model.embed_tokens.weight": (V, D)}
    for i in range(hf["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (D,),
            "self_attn.q_proj.weight": (H * K, D),
            "self_attn.k_proj.weight": (N * K, D),
            "self_attn.v_proj.weight": (N * K, D),
            "self_attn.o_proj.weight": (D, H * K),
            "post_attention_layernorm.weight": (D,),
            "mlp.gate_proj.weight": (F, D),
            "mlp.up_proj.weight": (F, D),
            "mlp.down_proj.weight": (D, F),
        }
        if kind in ("qwen2", "qwen2_5_vl"):
            layer |= {f"self_attn.{n}_proj.bias": (s * K,) for n, s in zip("qkv", (H, N, N))}  # noqa: B905
        if kind == "qwen3":
            layer |= {"self_attn.q_norm.weight": (K,), "self_attn.k_norm.weight": (K,)}
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (D,)
    if not hf["tie_word_embeddings"]:
        found["lm_head.weight"] = (V, D)
    return found | (_tower(hf["vision_config"]) if "vision_config" in hf else {})


def _tower(v: dict) -> dict[str, tuple[int, ...]]:
    D, F, p = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    M = D * v["spatial_merge_size"] ** 2
    found = {
        "visual.patch_embed.proj.weight": (D, v["in_chans"], v["temporal_patch_size"], p, p),
        "visual.merger.ln_q.weight": (D,),
        "visual.merger.mlp.0.weight": (M, M),
        "visual.merger.mlp.0.bias": (M,),
        "visual.merger.mlp.2.weight": (v["out_hidden_size"], M),
        "visual.merger.mlp.2.bias": (v["out_hidden_size"],),
    }
    for i in range(v["depth"]):
        block = {
            "norm1.weight": (D,),
            "norm2.weight": (D,),
            "attn.qkv.weight": (3 * D, D),
            "attn.qkv.bias": (3 * D,),
            "attn.proj.weight": (D, D),
            "attn.proj.bias": (D,),
            "mlp.gate_proj.weight": (F, D),
            "mlp.gate_proj.bias": (F,),
            "mlp.up_proj.weight": (F, D),
            "mlp.up_proj.bias": (F,),
            "mlp.down_proj.weight": (D, F),
            "mlp.down_proj.bias": (D,),
        }
        found |= {f"visual.blocks.{i}.{name}": shape for name, shape in block.items()}
    return found


def random_bits(shape, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Every bit drawn, subnormal numbers and negative zeros with them, but infinities and NaNs."""
    if dtype == "float32":
        bits = rng.integers(0, 2**32, shape, np.uint32)
        bits[(bits >> 23 & 0xFF) == 0xFF] = 1
    else:
        bits = rng.integers(0, 2**16, shape, np.uint16)
        mantissa, width = (7, 0xFF) if dtype == "bfloat16" else (10, 0x1F)
        bits[(bits >> mantissa & width) == width] = 1
    return bits.view(DTYPES[dtype])


def weights(hf: dict, dtype: str | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    dtype = dtype or hf["torch_dtype"]
    return {name: random_bits(shape, dtype, rng) for name, shape in shapes(hf).items()}


def tokenizer(words=WORDS):
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=[w for w in VISION_TOKENS if w in words],
        model_max_length=512,
    )


def write(folder, hf: dict, tensors: dict[str, np.ndarray], shards: int = 1, words=WORDS):
    """The folder as the hub would have it, in one file or in several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    if "vision_config" in hf:
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    tokenizer(words).save_pretrained(folder)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    record = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(record))
    return folder


def family(folder, name: str, dtype: str = "bfloat16", shards: int = 1):
    """(folder, config, tensors) of a family in one dtype."""
    hf = CONFIGS[name] | {"torch_dtype": dtype}
    tensors = weights(hf)
    return write(folder, hf, tensors, shards), hf, tensors
