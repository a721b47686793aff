"""Floating-point operations of a forward pass, counted from a model's sizes: a multiply-add is two.

Matrix products alone: norms, rotations and softmax are below one in a hundred of them. XLA's own
count takes a scan's body once, whatever the number of layers.
"""

from __future__ import annotations

from models.config import ModelConfig, VisionConfig


def width(cfg: ModelConfig) -> int:
    """The inner sides of a layer's matrices together; their other side is d_model."""
    return (2 * cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim + 3 * cfg.d_ff


def layer_weights(cfg: ModelConfig) -> int:
    """Weights that each token is multiplied with in the decoder's layers."""
    return cfg.n_layers * cfg.d_model * width(cfg)


def layers(cfg: ModelConfig, tokens: float, pairs: float) -> float:
    """The decoder's layers over `tokens`, whose queries meet `pairs` keys in all: the sum over queries
    of the keys that each is scored against."""
    return 2 * layer_weights(cfg) * tokens + attention(cfg, pairs)


def attention(cfg: ModelConfig, pairs: float) -> float:
    """Scores and the weighted sum of values, over all layers."""
    return 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * pairs


def head(cfg: ModelConfig, tokens: float) -> float:
    """Scores over the vocabulary."""
    return 2 * cfg.d_model * cfg.vocab_size * tokens


def tower(cfg: VisionConfig, d_out: int, patches: float, images: float) -> float:
    """The vision tower over `images` of `patches` patches each, padded places among them."""
    D, whole = cfg.d_model, len(cfg.full_attention)
    unit = cfg.merge**2 * D
    weights = cfg.patch_dim * D + cfg.n_layers * (4 * D * D + 3 * D * cfg.d_ff)
    weights += (unit * unit + unit * d_out) / cfg.merge**2  # the merger sees one unit for merge²
    window = cfg.window_units * cfg.merge**2
    keys = whole * patches + (cfg.n_layers - whole) * window
    return images * patches * (2 * weights + 4 * D * keys)


def causal_pairs(length: float) -> float:
    """Keys that the queries of one text meet, each those up to its own."""
    return length * (length + 1) / 2
