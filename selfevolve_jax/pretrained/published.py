"""The sizes of the models that the recipes name, so that a plan for them needs no network.

As their config.json on the hub has them (July 2026); the weights' own count of parameters, which
tests/pretrained/test_published.py holds, agrees.
"""

from __future__ import annotations

from dataclasses import replace

from models.config import ModelConfig, VisionConfig

_QWEN2_5_7B = ModelConfig(
    vocab_size=152_064,
    d_model=3584,
    n_layers=28,
    n_heads=28,
    n_kv_heads=4,
    head_dim=128,
    d_ff=18_944,
    qkv_bias=True,
    dtype="bfloat16",
    param_dtype="bfloat16",
)
_TOWER = VisionConfig(
    d_model=1280,
    n_layers=32,
    n_heads=16,
    d_ff=3420,
    image_token=151_655,
    full_attention=(7, 15, 23, 31),
)
_VL_7B = replace(_QWEN2_5_7B, rope_theta=1_000_000.0, mrope_sections=(16, 24, 24), vision=_TOWER)
_QWEN3_14B = ModelConfig(
    vocab_size=151_936,
    d_model=5120,
    n_layers=40,
    n_heads=40,
    n_kv_heads=8,
    head_dim=128,
    d_ff=17_408,
    rope_theta=1_000_000.0,
    qk_norm=True,
    dtype="bfloat16",
    param_dtype="bfloat16",
)
SIZES = {
    "Qwen/Qwen2.5-Math-7B": _QWEN2_5_7B,
    "Qwen/Qwen3-4B-Base": replace(
        _QWEN3_14B, d_model=2560, n_layers=36, n_heads=32, d_ff=9728, tie_embeddings=True
    ),
    "Qwen/Qwen3-14B-Base": _QWEN3_14B,
    "Qwen/Qwen2.5-VL-3B-Instruct": replace(
        _VL_7B,
        vocab_size=151_936,
        d_model=2048,
        n_layers=36,
        n_heads=16,
        n_kv_heads=2,
        d_ff=11_008,
        tie_embeddings=True,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": _VL_7B,
    "Qwen/Qwen2.5-VL-72B-Instruct": replace(
        _VL_7B,
        d_model=8192,
        n_layers=80,
        n_heads=64,
        n_kv_heads=8,
        d_ff=29_568,
        vision=replace(_TOWER, d_ff=3456),
    ),
}
