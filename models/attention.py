"""Self-attention over whole sequences, by the way that suits where it runs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.config import ModelConfig
from models.shared import Constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_Q_AXES = ("batch", "length", "heads", None)
_KV_AXES = ("batch", "length", "kv_heads", None)
_ID_AXES = ("batch", "length")


def self_attention(
    segment_ids_BxT: jax.Array, branch_ids_BxT: jax.Array, cfg: ModelConfig, constrain: Constrain
) -> Attend:
    """`attend(q [B, T, H, K], k [B, T, N, K], v [B, T, N, K]) -> [B, T, H, K]` by the rule that
    `decoder.forward` states. Made once and used by every layer, as the mask, where there is one, is
    the same for all.
    """
    kind = choose(cfg, segment_ids_BxT.shape[1], constrain.platform)
    if kind == "flash":
        # Imported here: Pallas takes most of a second, which other backends need not wait for.
        from models.flash import flash_attention

        def flash(*operands):
            return flash_attention(*operands, interpret=constrain.platform != "tpu")

        # A kernel is opaque to the partitioner, so each device is told to run it on its own piece.
        axes = (_Q_AXES, _KV_AXES, _KV_AXES, _ID_AXES, _ID_AXES)
        local = constrain.local(flash, axes, _Q_AXES)
        return lambda q, k, v: local(q, k, v, segment_ids_BxT, branch_ids_BxT)

    T = segment_ids_BxT.shape[1]
    same_BxTxT = segment_ids_BxT[:, :, None] == segment_ids_BxT[:, None, :]
    seen_BxTxT = branch_ids_BxT[:, :, None] == branch_ids_BxT[:, None, :]
    seen_BxTxT |= (branch_ids_BxT == 0)[:, None, :]
    mask_Bx1xTxT = (same_BxTxT & seen_BxTxT & jnp.tril(jnp.ones((T, T), bool)))[:, None]
    implementation = "cudnn" if kind == "cudnn" else None
    return lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, mask=mask_Bx1xTxT, implementation=implementation
    )


def choose(cfg: ModelConfig, length: int, platform: str) -> str:
    """The kind of attention: what the config says, and for "auto" what suits the platform. cuDNN
    takes bfloat16 alone, heads of up to 128 in multiples of 8 and, with a mask, even lengths."""
    if cfg.attention != "auto":
        return cfg.attention
    if platform == "tpu":
        return "flash"
    fits = cfg.dtype == "bfloat16" and cfg.head_dim <= 128 and not cfg.head_dim % 8
    return "cudnn" if platform == "gpu" and fits and not length % 2 else "plain"
