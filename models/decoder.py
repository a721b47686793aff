"""A decoder for the Llama, Qwen2/2.5 and Qwen3 families: GQA, RoPE, RMSNorm, SwiGLU. With a vision
tower (`vision.py`) it is Qwen2.5-VL: the tower's tokens take the places of image tokens.

Two entries share one block: `forward` reads whole, possibly packed sequences (training), and
`forward_cached` reads new tokens against a key/value cache (prefill and decode). Both return hidden
states after the final norm; `logits` turns those, or a slice of them, into float32 scores, so that
no caller is forced to hold a [B, T, V] array.

Shape letters: B batch, T tokens, D d_model, H heads, N kv heads, K head_dim, F d_ff, V vocabulary,
L layers, C cache capacity, U merge units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from models import rope
from models.attention import self_attention
from models.config import ModelConfig
from models.lora import Adapters, adapter_specs, project
from models.params import ParamSpec
from models.shared import Constrain, rematerialised, rms_norm, unconstrained
from models.vision import VisionParams, abstract_vision_params


@jax.tree_util.register_dataclass
@dataclass
class Layers:
    """Every layer's weights, stacked on a leading L axis so that one scan runs them."""

    attn_norm: Any  # [L, D]
    q: Any  # [L, D, H, K]
    k: Any  # [L, D, N, K]
    v: Any  # [L, D, N, K]
    o: Any  # [L, H, K, D]
    mlp_norm: Any  # [L, D]
    gate: Any  # [L, D, F]
    up: Any  # [L, D, F]
    down: Any  # [L, F, D]
    q_bias: Any = None  # [L, H, K]   Qwen2
    k_bias: Any = None  # [L, N, K]
    v_bias: Any = None  # [L, N, K]
    q_norm: Any = None  # [L, K]      Qwen3
    k_norm: Any = None  # [L, K]
    lora: Adapters | None = None


@jax.tree_util.register_dataclass
@dataclass
class Params:
    embed: Any  # [V, D]
    layers: Layers
    final_norm: Any  # [D]
    head: Any = None  # [D, V]; None when tied to embed
    vision: VisionParams | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageTokens:
    """What stands in for the embeddings of image tokens: row b takes features_BxUxD[b, index[b, t]]
    at token t, where index is not −1."""

    features_BxUxD: Any
    index_BxT: Any


@jax.tree_util.register_dataclass
@dataclass
class Cache:
    """Keys and values by position: slot p of row b holds position p. A plain pytree. In the model's
    dtype, or where that is bfloat16 its bits as uint16 (see `empty_cache`)."""

    k: jax.Array  # [L, B, C, N, K]
    v: jax.Array  # [L, B, C, N, K]

    @property
    def capacity(self) -> int:
        return self.k.shape[2]


CACHE_AXES = ("layers", "batch", None, "kv_heads", None)


def abstract_params(cfg: ModelConfig) -> Params:
    """The tree of ParamSpec: shape, logical axes, initialiser and dtype of every parameter.

    Matrices start with variance 1/fan_in; those that write to the residual stream are divided by
    sqrt(2L) (Radford et al. 2019), so that its variance does not grow with depth.
    """
    L, D, H, N, K, F = (
        cfg.n_layers,
        cfg.d_model,
        cfg.n_heads,
        cfg.n_kv_heads,
        cfg.head_dim,
        cfg.d_ff,
    )
    into, residual = D**-0.5, (2 * L) ** -0.5

    def spec(shape, axes, stddev=None, fill=0.0) -> ParamSpec:
        return ParamSpec(shape, axes, stddev, fill, cfg.param_dtype)

    layers = Layers(
        attn_norm=spec((L, D), ("layers", None), fill=1.0),
        q=spec((L, D, H, K), ("layers", "embed", "heads", None), into),
        k=spec((L, D, N, K), ("layers", "embed", "kv_heads", None), into),
        v=spec((L, D, N, K), ("layers", "embed", "kv_heads", None), into),
        o=spec((L, H, K, D), ("layers", "heads", None, "embed"), (H * K) ** -0.5 * residual),
        mlp_norm=spec((L, D), ("layers", None), fill=1.0),
        gate=spec((L, D, F), ("layers", "embed", "mlp"), into),
        up=spec((L, D, F), ("layers", "embed", "mlp"), into),
        down=spec((L, F, D), ("layers", "mlp", "embed"), F**-0.5 * residual),
    )
    if cfg.qkv_bias:
        layers.q_bias = spec((L, H, K), ("layers", "heads", None))
        layers.k_bias = spec((L, N, K), ("layers", "kv_heads", None))
        layers.v_bias = spec((L, N, K), ("layers", "kv_heads", None))
    if cfg.qk_norm:
        layers.q_norm = spec((L, K), ("layers", None), fill=1.0)
        layers.k_norm = spec((L, K), ("layers", None), fill=1.0)
    if cfg.lora.rank:
        layers.lora = adapter_specs(layers, cfg.lora)
    head = None if cfg.tie_embeddings else spec((D, cfg.vocab_size), ("embed", "vocab"), into)
    return Params(
        embed=spec((cfg.vocab_size, D), ("vocab", "embed"), into),
        layers=layers,
        final_norm=spec((D,), (None,), fill=1.0),
        head=head,
        vision=cfg.vision
        and abstract_vision_params(cfg.vision, cfg.d_model, cfg.param_dtype, cfg.lora),
    )


def empty_cache(cfg: ModelConfig, batch: int, capacity: int) -> Cache:
    shape = (cfg.n_layers, batch, capacity, cfg.n_kv_heads, cfg.head_dim)
    # bfloat16 is held as its bits. XLA's CPU backend scatters no bfloat16: it would turn the whole
    # cache into float32 and back for every layer of every token. (Measured on SmolLM2-135M: 1.0 s of
    # two cores for a decode step of 32 slots, and 0.22 s so.)
    dtype = jnp.uint16 if cfg.dtype == "bfloat16" else jnp.dtype(cfg.dtype)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _as(dtype: Any, x: jax.Array) -> jax.Array:
    """The same bits as another type of the same size."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def _block(
    x_BxTxD: jax.Array,
    layer: Layers,
    angles: tuple[jax.Array, jax.Array],
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    cfg: ModelConfig,
    constrain: Constrain,
) -> jax.Array:
    """One transformer layer. `attend(q, k, v)` owns the mask and, when there is one, the cache."""

    def dense(equation: str, name: str, h: jax.Array) -> jax.Array:
        return project(equation, name, h, layer, cfg.lora)

    with jax.named_scope("attention"):
        h = rms_norm(x_BxTxD, layer.attn_norm, cfg.norm_eps)
        q = dense("btd,dhk->bthk", "q", h)
        k = dense("btd,dnk->btnk", "k", h)
        v = dense("btd,dnk->btnk", "v", h)
        if cfg.qkv_bias:
            q = q + layer.q_bias.astype(q.dtype)
            k = k + layer.k_bias.astype(k.dtype)
            v = v + layer.v_bias.astype(v.dtype)
        if cfg.qk_norm:
            q = rms_norm(q, layer.q_norm, cfg.norm_eps)
            k = rms_norm(k, layer.k_norm, cfg.norm_eps)
        q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
        q = constrain(q, ("batch", "length", "heads", None))
        k = constrain(k, ("batch", "length", "kv_heads", None))
        v = constrain(v, ("batch", "length", "kv_heads", None))
        mixed = constrain(attend(q, k, v), ("batch", "length", "heads", None))
        x_BxTxD = x_BxTxD + dense("bthk,hkd->btd", "o", mixed)
        x_BxTxD = constrain(x_BxTxD, ("batch", "length", None))
    with jax.named_scope("mlp"):
        h = rms_norm(x_BxTxD, layer.mlp_norm, cfg.norm_eps)
        gate = jax.nn.silu(dense("btd,df->btf", "gate", h))
        wide = gate * dense("btd,df->btf", "up", h)
        wide = constrain(wide, ("batch", "length", "mlp"))
        x_BxTxD = x_BxTxD + dense("btf,fd->btd", "down", wide)
        return constrain(x_BxTxD, ("batch", "length", None))


def _embed(
    params: Params,
    tokens_BxT: jax.Array,
    images: ImageTokens | None,
    cfg: ModelConfig,
    constrain: Constrain,
) -> jax.Array:
    # Gathered over d_model first: from a table split both ways XLA would replicate the result.
    table_VxD = constrain(params.embed.astype(jnp.dtype(cfg.dtype)), ("vocab", None))
    x_BxTxD = table_VxD[tokens_BxT]
    if images is not None:
        index = images.index_BxT[..., None]
        seen = jnp.take_along_axis(images.features_BxUxD, jnp.maximum(index, 0), axis=1)
        x_BxTxD = jnp.where(index >= 0, seen.astype(x_BxTxD.dtype), x_BxTxD)
    return constrain(x_BxTxD, ("batch", "length", None))


def _angles(positions: jax.Array, cfg: ModelConfig) -> tuple[jax.Array, jax.Array]:
    return rope.angles(
        positions, cfg.head_dim, cfg.rope_theta, cfg.rope_scaling, cfg.mrope_sections
    )


def forward(
    params: Params,
    tokens_BxT: jax.Array,
    positions: jax.Array,
    segment_ids_BxT: jax.Array,
    branch_ids_BxT: jax.Array,
    cfg: ModelConfig,
    constrain: Constrain = unconstrained,
    images: ImageTokens | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] of whole sequences.

    positions: [B, T], or [B, T, 3] where there are images (see `rope.angles`).

    segment_ids: which text each token belongs to, −1 for padding; several texts may share a row
    (packing), and positions restart with each. branch_ids: within a segment 0 is the trunk, and
    other numbers are continuations of it that do not see each other, so that many samples share one
    copy of their prompt. A token attends to what comes earlier in its segment and is of its own
    branch or of the trunk. What stands at padding never changes what a real token gives.
    """
    angles = _angles(positions, cfg)
    attend = self_attention(segment_ids_BxT, branch_ids_BxT, cfg, constrain)

    def step(x, layer):
        return _block(x, layer, angles, attend, cfg, constrain), None

    step = rematerialised(step, cfg.remat)
    x_BxTxD = _embed(params, tokens_BxT, images, cfg, constrain)
    x_BxTxD, _ = jax.lax.scan(step, x_BxTxD, params.layers, unroll=cfg.unroll)
    return rms_norm(x_BxTxD, params.final_norm, cfg.norm_eps)


def forward_cached(
    params: Params,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    cache: Cache,
    cfg: ModelConfig,
    constrain: Constrain = unconstrained,
    rotary_positions: jax.Array | None = None,
    images: ImageTokens | None = None,
) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, D] of new tokens, and the cache with their keys and values written.

    Slot = position, and a token attends to slots ≤ its own position. So right padding needs no mask:
    what a padded prefill writes beyond a row's length is overwritten by the token that really comes
    there before anything may attend to it.

    rotary_positions: [B, T] or [B, T, 3], where they differ from the slots: after an image the count
    of tokens runs ahead of the position that M-RoPE gives to the next one.
    """
    rows_Bx1 = jnp.arange(tokens_BxT.shape[0])[:, None]
    angles = _angles(positions_BxT if rotary_positions is None else rotary_positions, cfg)
    mask_Bx1xTxC = (jnp.arange(cache.capacity) <= positions_BxT[:, :, None])[:, None]

    # The cache is carried and updated in place: passed as scan inputs and outputs it would be copied
    # layer by layer (measured up to 2.4x slower on the CPU).
    def step(carry, xs):
        x, keys, values = carry
        index, layer = xs

        def attend(q, k, v):
            nonlocal keys, values
            at = (index, rows_Bx1, positions_BxT)
            keys = keys.at[at].set(_as(keys.dtype, k), unique_indices=True)
            values = values.at[at].set(_as(values.dtype, v), unique_indices=True)
            held = _as(k.dtype, keys[index]), _as(v.dtype, values[index])
            return jax.nn.dot_product_attention(q, *held, mask=mask_Bx1xTxC)

        x = _block(x, layer, angles, attend, cfg, constrain)
        return (x, constrain(keys, CACHE_AXES), constrain(values, CACHE_AXES)), None

    carry = (_embed(params, tokens_BxT, images, cfg, constrain), cache.k, cache.v)
    (x_BxTxD, keys, values), _ = jax.lax.scan(
        step, carry, (jnp.arange(cfg.n_layers), params.layers), unroll=cfg.unroll
    )
    return rms_norm(x_BxTxD, params.final_norm, cfg.norm_eps), Cache(keys, values)


def logits(params: Params, hidden: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Scores over the vocabulary, float32 [..., V], from hidden states [..., D]."""
    # Not embed.T: the transpose would be made, and that of its gradient, for every piece of a loss.
    equation, head = (
        ("...d,vd->...v", params.embed) if cfg.tie_embeddings else ("...d,dv->...v", params.head)
    )
    return jnp.einsum(
        equation, hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
