"""The vision tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1): patches in, tokens out.

Patches come in window order (see `Pixels`), every window padded to its full size, so that attention
inside windows is one batched product over small squares, and shapes depend on the number of windows
alone. What stands at padding never changes what a real patch gives.

Shape letters: R rows (of one or more images), P patches, U merge units = P / merge², C values of a
patch, S patches of a whole window, D width of the tower, H heads, K head_dim, F d_ff, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from models import rope
from models.config import LoraConfig, ModelConfig, VisionConfig
from models.lora import Adapters, adapter_specs, project
from models.params import ParamSpec
from models.shared import Constrain, rematerialised, rms_norm, unconstrained

# Fixed in the published architecture; no config names them.
ROPE_THETA, NORM_EPS = 10_000.0, 1e-6
# Queries of a full-attention layer that are scored at a time: its [H, P, P] scores never exist.
QUERY_CHUNK = 1024


@jax.tree_util.register_dataclass
@dataclass
class VisionLayers:
    """Every layer's weights, stacked on a leading L axis."""

    attn_norm: Any  # [L, D]
    qkv: Any  # [L, D, 3, H, K]
    qkv_bias: Any  # [L, 3, H, K]
    o: Any  # [L, H, K, D]
    o_bias: Any  # [L, D]
    mlp_norm: Any  # [L, D]
    gate: Any  # [L, D, F]
    gate_bias: Any  # [L, F]
    up: Any  # [L, D, F]
    up_bias: Any  # [L, F]
    down: Any  # [L, F, D]
    down_bias: Any  # [L, D]
    lora: Adapters | None = None


@jax.tree_util.register_dataclass
@dataclass
class VisionParams:
    patch: Any  # [C, D]; values of a patch run over (channel, frame, row, column)
    layers: VisionLayers
    merge_norm: Any  # [D]
    merge_in: Any  # [merge² D, merge² D]
    merge_in_bias: Any  # [merge² D]
    merge_out: Any  # [merge² D, d_model of the decoder]
    merge_out_bias: Any  # [d_model of the decoder]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pixels:
    """The images of R rows. P is a multiple of S: each window has S places, of which those that the
    image's edge cuts off are padding. Places of a window run over its merge units, row by row, and
    within a unit over its patches, row by row; no window spans two images.

    patches: float32, normalised. coords: int32, (row, column) of the patch in its image.
    image_ids: int32, which of the row's images it is of; −1 at padding.
    """

    patches_RxPxC: Any
    coords_RxPx2: Any
    image_ids_RxP: Any


def abstract_vision_params(
    cfg: VisionConfig, d_out: int, dtype: str, lora: LoraConfig
) -> VisionParams:
    """The tree of ParamSpec, started as the decoder's is (see `decoder.abstract_params`)."""
    L, D, H, K, F = cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.head_dim, cfg.d_ff
    M = cfg.merge**2 * D
    into, residual = D**-0.5, (2 * L) ** -0.5

    def spec(shape, axes, stddev=None, fill=0.0) -> ParamSpec:
        return ParamSpec(shape, axes, stddev, fill, dtype)

    layers = VisionLayers(
        attn_norm=spec((L, D), ("layers", None), fill=1.0),
        qkv=spec((L, D, 3, H, K), ("layers", "embed", None, "heads", None), into),
        qkv_bias=spec((L, 3, H, K), ("layers", None, "heads", None)),
        o=spec((L, H, K, D), ("layers", "heads", None, "embed"), into * residual),
        o_bias=spec((L, D), ("layers", None)),
        mlp_norm=spec((L, D), ("layers", None), fill=1.0),
        gate=spec((L, D, F), ("layers", "embed", "mlp"), into),
        gate_bias=spec((L, F), ("layers", "mlp")),
        up=spec((L, D, F), ("layers", "embed", "mlp"), into),
        up_bias=spec((L, F), ("layers", "mlp")),
        down=spec((L, F, D), ("layers", "mlp", "embed"), F**-0.5 * residual),
        down_bias=spec((L, D), ("layers", None)),
    )
    if lora.rank and lora.vision:
        layers.lora = adapter_specs(layers, lora)
    return VisionParams(
        patch=spec((cfg.patch_dim, D), (None, "embed"), cfg.patch_dim**-0.5),
        layers=layers,
        merge_norm=spec((D,), (None,), fill=1.0),
        merge_in=spec((M, M), ("embed", "mlp"), M**-0.5),
        merge_in_bias=spec((M,), ("mlp",)),
        merge_out=spec((M, d_out), ("mlp", "embed"), M**-0.5),
        merge_out_bias=spec((d_out,), (None,)),
    )


def encode(
    params: VisionParams,
    pixels: Pixels,
    model: ModelConfig,
    constrain: Constrain = unconstrained,
) -> jax.Array:
    """Tokens [R, U, d_model of the decoder] of every merge unit, in the window order of `pixels`."""
    cfg, dtype = model.vision, jnp.dtype(model.dtype)
    assert cfg is not None
    R, P, _ = pixels.patches_RxPxC.shape
    size = cfg.window_units * cfg.merge**2
    assert P % size == 0, (P, size)
    angles = rotary_angles(pixels.coords_RxPx2, cfg)
    windows = lambda x: x.reshape(R * (P // size), size, *x.shape[2:])  # noqa: E731
    image_RxP = pixels.image_ids_RxP
    window_mask = (windows(image_RxP) >= 0)[:, None, None, :]

    def in_windows(q, k, v):
        mixed = jax.nn.dot_product_attention(windows(q), windows(k), windows(v), mask=window_mask)
        return mixed.reshape(q.shape)

    def in_images(q, k, v):
        return image_attention(q, k, v, image_RxP)

    def step(x_RxPxD, xs):
        full, layer = xs

        def attend(q, k, v):
            return jax.lax.cond(full, in_images, in_windows, q, k, v)

        return _block(x_RxPxD, layer, angles, attend, model, constrain), None

    x_RxPxD = jnp.einsum(
        "rpc,cd->rpd", pixels.patches_RxPxC.astype(dtype), params.patch.astype(dtype)
    )
    x_RxPxD = constrain(x_RxPxD, ("batch", "length", None))
    full_L = jnp.isin(jnp.arange(cfg.n_layers), jnp.array(cfg.full_attention, jnp.int32))
    x_RxPxD, _ = jax.lax.scan(rematerialised(step, model.remat), x_RxPxD, (full_L, params.layers))
    return merge_units(params, x_RxPxD, model)


def rotary_angles(coords_RxPx2: jax.Array, cfg: VisionConfig) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [R, P, K/2]: half of the pairs turn with the row, half with the column."""
    freqs, _ = rope.frequencies(cfg.head_dim // 2, ROPE_THETA, None)
    phase = coords_RxPx2[..., None].astype(jnp.float32) * freqs  # [R, P, 2, K/4]
    phase = phase.reshape(*phase.shape[:-2], -1)
    return jnp.cos(phase), jnp.sin(phase)


def image_attention(q, k, v, image_RxP: jax.Array) -> jax.Array:
    """Each patch attends to all patches of its image, [R, P, H, K], a chunk of queries at a time."""
    R, P = image_RxP.shape

    def attend(query, image):
        mask = (image[:, :, None] == image_RxP[:, None, :])[:, None]
        return jax.nn.dot_product_attention(query, k, v, mask=mask)

    if P <= QUERY_CHUNK:
        return attend(q, image_RxP)
    pieces = -(-P // QUERY_CHUNK)

    def split(x, fill):
        pad = [(0, 0), (0, pieces * QUERY_CHUNK - P)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad, constant_values=fill)
        return x.reshape(R, pieces, QUERY_CHUNK, *x.shape[2:]).swapaxes(0, 1)

    chunks = (split(q, 0), split(image_RxP, -1))
    mixed = jax.lax.map(jax.checkpoint(lambda chunk: attend(*chunk)), chunks)
    return mixed.swapaxes(0, 1).reshape(R, pieces * QUERY_CHUNK, *q.shape[2:])[:, :P]


def merge_units(params: VisionParams, x_RxPxD: jax.Array, model: ModelConfig) -> jax.Array:
    """The merger: norm, the patches of a unit side by side, Linear, exact GELU, Linear."""
    assert model.vision is not None
    R, P, D = x_RxPxD.shape
    n, dtype = model.vision.merge**2, x_RxPxD.dtype
    h = rms_norm(x_RxPxD, params.merge_norm, NORM_EPS).reshape(R, P // n, n * D)
    h = jnp.einsum("rum,mn->run", h, params.merge_in.astype(dtype))
    h = jax.nn.gelu(h + params.merge_in_bias.astype(dtype), approximate=False)
    h = jnp.einsum("run,nd->rud", h, params.merge_out.astype(dtype))
    return h + params.merge_out_bias.astype(dtype)


def _block(x_RxPxD, layer: VisionLayers, angles, attend, model: ModelConfig, constrain: Constrain):
    def dense(equation: str, name: str, h: jax.Array) -> jax.Array:
        bias = getattr(layer, f"{name}_bias").astype(h.dtype)
        return project(equation, name, h, layer, model.lora) + bias

    with jax.named_scope("vision_attention"):
        h = rms_norm(x_RxPxD, layer.attn_norm, NORM_EPS)
        qkv = dense("rpd,dchk->rpchk", "qkv", h)
        q, k, v = (qkv[:, :, i] for i in range(3))
        q, k = rope.rotate(q, *angles), rope.rotate(k, *angles)
        q, k, v = (constrain(x, ("batch", "length", "heads", None)) for x in (q, k, v))
        x_RxPxD = x_RxPxD + dense("rphk,hkd->rpd", "o", attend(q, k, v))
        x_RxPxD = constrain(x_RxPxD, ("batch", "length", None))
    with jax.named_scope("vision_mlp"):
        h = rms_norm(x_RxPxD, layer.mlp_norm, NORM_EPS)
        wide = jax.nn.silu(dense("rpd,df->rpf", "gate", h)) * dense("rpd,df->rpf", "up", h)
        wide = constrain(wide, ("batch", "length", "mlp"))
        x_RxPxD = x_RxPxD + dense("rpf,fd->rpd", "down", wide)
        return constrain(x_RxPxD, ("batch", "length", None))
