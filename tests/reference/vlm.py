"""Runs our Qwen2.5-VL at every point that vlm.npz holds, and measures how far the two are apart.

The functions under test are the real ones. They are looked up when they are called, so that a test
which breaks one of them on purpose sees it here.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from models import decoder, rope, vision
from models.config import ModelConfig, config_from_dict
from selfevolve_jax import images

TOLERANCE = 2e-5
TEMPERATURE = 0.7
LIMITS = images.ImageConfig(min_pixels=256, max_pixels=2048)  # those of the script
# Pictures of each row, by name, and how many.
ROWS = (("large", "wide"), (), ("alpha",), ("square",))


@functools.cache
def stored() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).with_name("vlm.npz")) as file:
        return {name: file[name] for name in file.files}


def under(prefix: str) -> dict[str, np.ndarray]:
    """The arrays under a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in stored().items() if k.startswith(prefix)}


def error(name: str, ours: np.ndarray) -> float:
    """Largest difference from the stored array, relative to the largest value there."""
    theirs, ours = stored()[name].astype(np.float64), np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
    assert np.isfinite(ours).all(), name
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@functools.cache
def config() -> ModelConfig:
    return config_from_dict(json.loads(str(stored()["config"])))


@functools.cache
def params() -> decoder.Params:
    return params_from_hf(under("weights/"), config())


def params_from_hf(weights: dict[str, np.ndarray], cfg: ModelConfig) -> decoder.Params:
    """Our layout of Hugging Face weights; its matrices are [out, in], with heads inside `out`."""
    D, H, N, K = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    tower = cfg.vision
    assert tower is not None
    read = {name: value.astype(np.float32) for name, value in weights.items()}
    used = set()

    def get(name):
        used.add(name)
        return read[name]

    def stack(n, pattern, *shape):
        rows = [get(pattern.format(i)) for i in range(n)]
        return np.stack([(r.T if r.ndim == 2 else r).reshape(shape or r.T.shape) for r in rows])

    def text(name, *shape):
        return stack(cfg.n_layers, f"model.language_model.layers.{{}}.{name}", *shape)

    def seen(name, *shape):
        return stack(tower.n_layers, f"model.visual.blocks.{{}}.{name}", *shape)

    heads = (3, tower.n_heads, tower.head_dim)
    merger = "model.visual.merger."
    tree = decoder.Params(
        embed=get("model.language_model.embed_tokens.weight"),
        layers=decoder.Layers(
            attn_norm=text("input_layernorm.weight"),
            q=text("self_attn.q_proj.weight", D, H, K),
            k=text("self_attn.k_proj.weight", D, N, K),
            v=text("self_attn.v_proj.weight", D, N, K),
            o=text("self_attn.o_proj.weight", H, K, D),
            mlp_norm=text("post_attention_layernorm.weight"),
            gate=text("mlp.gate_proj.weight"),
            up=text("mlp.up_proj.weight"),
            down=text("mlp.down_proj.weight"),
            q_bias=text("self_attn.q_proj.bias", H, K),
            k_bias=text("self_attn.k_proj.bias", N, K),
            v_bias=text("self_attn.v_proj.bias", N, K),
        ),
        final_norm=get("model.language_model.norm.weight"),
        head=get("lm_head.weight").T,
        vision=vision.VisionParams(
            patch=get("model.visual.patch_embed.proj.weight").reshape(tower.d_model, -1).T,
            layers=vision.VisionLayers(
                attn_norm=seen("norm1.weight"),
                qkv=seen("attn.qkv.weight", tower.d_model, *heads),
                qkv_bias=seen("attn.qkv.bias", *heads),
                o=seen("attn.proj.weight", *heads[1:], tower.d_model),
                o_bias=seen("attn.proj.bias"),
                mlp_norm=seen("norm2.weight"),
                gate=seen("mlp.gate_proj.weight"),
                gate_bias=seen("mlp.gate_proj.bias"),
                up=seen("mlp.up_proj.weight"),
                up_bias=seen("mlp.up_proj.bias"),
                down=seen("mlp.down_proj.weight"),
                down_bias=seen("mlp.down_proj.bias"),
            ),
            merge_norm=get(merger + "ln_q.weight"),
            merge_in=get(merger + "mlp.0.weight").T,
            merge_in_bias=get(merger + "mlp.0.bias"),
            merge_out=get(merger + "mlp.2.weight").T,
            merge_out_bias=get(merger + "mlp.2.bias"),
        ),
    )
    assert used == set(read), f"weights that no parameter took: {set(read) - used}"
    return tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """The stored batch as our functions take it, padded on the right. A pytree, so that no array is
    a constant of a compiled function: XLA would spend seconds on folding it."""

    tokens_BxT: np.ndarray
    positions_BxTx3: np.ndarray
    deltas_B: np.ndarray
    real_BxT: np.ndarray
    index_BxT: np.ndarray
    pixels: vision.Pixels

    @property
    def real_RxP(self) -> np.ndarray:
        return self.pixels.image_ids_RxP >= 0


def inputs() -> Inputs:
    """Made from the PNG files and ids by the functions of `selfevolve_jax.images`."""
    tower = config().vision
    assert tower is not None
    ends = np.cumsum(stored()["lengths"])[:-1]
    tokens = np.split(stored()["tokens"], ends)
    opened = {n: images.load_image(stored()[f"image/{n}"].tobytes()) for row in ROWS for n in row}
    pictures = [[images.preprocess(opened[name], LIMITS, tower) for name in row] for row in ROWS]
    pixels, index = images.layout(pictures, [row.tolist() for row in tokens], tower)
    placed = [
        images.prompt_positions(row.tolist(), [p.grid for p in seen], tower)
        for row, seen in zip(tokens, pictures, strict=True)
    ]
    T = max(len(row) for row in tokens)

    def pad(rows, fill):
        width = lambda x: [(0, T - len(x))] + [(0, 0)] * (x.ndim - 1)  # noqa: E731
        return np.stack([np.pad(x, width(x), constant_values=fill) for x in rows])

    return Inputs(
        tokens_BxT=pad(tokens, 0),
        positions_BxTx3=pad([positions for positions, _ in placed], 0),
        deltas_B=np.array([delta for _, delta in placed], np.int32),
        real_BxT=np.arange(T) < stored()["lengths"][:, None],
        index_BxT=pad(index, -1),
        pixels=pixels,
    )


def merged_points(batch: Inputs, cfg: ModelConfig | None = None) -> dict[str, np.ndarray]:
    """vision/merged and vision/features: the tower's tokens in window order and in that of a row."""
    cfg = cfg or config()
    run = jax.jit(lambda tower, pixels: vision.encode(tower, pixels, cfg))
    with jax.default_matmul_precision("highest"):
        merged = jax.device_get(run(params().vision, batch.pixels))
    rows, columns = np.nonzero(batch.index_BxT >= 0)
    return {
        "vision/merged": merged[batch.real_RxP[:, :: batch.real_RxP.shape[1] // merged.shape[1]]],
        "vision/features": merged[rows, batch.index_BxT[rows, columns]],
    }


def stream_points(batch: Inputs) -> dict[str, np.ndarray]:
    """vision/cos, vision/sin, and what enters the tower's first block and leaves each."""
    cfg, tower = config(), params().vision
    assert cfg.vision is not None and tower is not None

    def after(n, tower, pixels):
        """The residual stream after n blocks: a tower of n blocks without its merger."""
        full = tuple(i for i in cfg.vision.full_attention if i < n)
        cut = replace(cfg, vision=replace(cfg.vision, n_layers=n, full_attention=full))
        layers = jax.tree.map(lambda x: x[:n], tower.layers)
        with mock.patch.object(vision, "merge_units", lambda params, x, cfg: x):
            return vision.encode(replace(tower, layers=layers), pixels, cut)

    @jax.jit
    def run(tower, pixels):
        cos, sin = vision.rotary_angles(pixels.coords_RxPx2, cfg.vision)
        blocks = range(cfg.vision.n_layers)
        streams = {f"block/{i}": after(i + 1, tower, pixels) for i in blocks}
        return streams | {"cos": cos, "sin": sin, "patch_embed": after(0, tower, pixels)}

    with jax.default_matmul_precision("highest"):
        points = jax.device_get(run(tower, batch.pixels))
    return {f"vision/{name}": x[batch.real_RxP] for name, x in points.items()}


def forward(tree: decoder.Params, batch: Inputs, cfg: ModelConfig) -> jax.Array:
    """Hidden states [B, T, D] from pixels and tokens."""
    assert tree.vision is not None
    features = vision.encode(tree.vision, batch.pixels, cfg)
    segments = jnp.where(batch.real_BxT, 0, -1)
    return decoder.forward(
        tree,
        jnp.asarray(batch.tokens_BxT),
        jnp.asarray(batch.positions_BxTx3),
        segments,
        jnp.zeros_like(segments),
        cfg,
        images=decoder.ImageTokens(features, jnp.asarray(batch.index_BxT)),
    )


def logprobs(logits_BxTxV: jax.Array, batch: Inputs) -> jax.Array:
    """[B, T] at T = 0.7, each token given those before it; 0 for a first token and for padding."""
    scores = jax.nn.log_softmax(logits_BxTxV[:, :-1] / TEMPERATURE, axis=-1)
    chosen = jnp.take_along_axis(scores, jnp.asarray(batch.tokens_BxT)[:, 1:, None], axis=-1)
    kept = jnp.where(batch.real_BxT[:, 1:], chosen[..., 0], 0.0)
    return jnp.pad(kept, ((0, 0), (1, 0)))


def logits_points(batch: Inputs) -> dict[str, np.ndarray]:
    """logits alone, of the same forward pass as in `text_points`."""
    cfg = config()
    run = jax.jit(lambda tree, batch: decoder.logits(tree, forward(tree, batch, cfg), cfg))
    with jax.default_matmul_precision("highest"):
        return {"logits": jax.device_get(run(params(), batch))[batch.real_BxT]}


def text_points(batch: Inputs) -> dict[str, np.ndarray]:
    """text/*, logits, logits_tied and logprobs."""
    cfg = config()
    tied = replace(cfg, tie_embeddings=True)
    norm = decoder.rms_norm

    def after(n, tree, batch):
        """The residual stream after n layers: a decoder of n layers without its final norm."""
        layers = jax.tree.map(lambda x: x[:n], tree.layers)
        with mock.patch.object(
            decoder, "rms_norm", lambda x, scale, eps: x if scale is None else norm(x, scale, eps)
        ):
            return forward(replace(tree, layers=layers, final_norm=None), batch, cfg)

    @jax.jit
    def run(tree, batch):
        hidden = forward(tree, batch, cfg)
        logits = decoder.logits(tree, hidden, cfg)
        angles = rope.angles(
            jnp.asarray(batch.positions_BxTx3),
            cfg.head_dim,
            cfg.rope_theta,
            cfg.rope_scaling,
            cfg.mrope_sections,
        )
        points = dict(zip(("text/cos", "text/sin"), angles, strict=True))
        points |= {"text/embeds": after(0, tree, batch), "text/final": hidden}
        points |= {f"text/layer/{i}": after(i + 1, tree, batch) for i in range(cfg.n_layers)}
        points |= {"logits": logits, "logprobs": logprobs(logits, batch)}
        points["logits_tied"] = decoder.logits(replace(tree, head=None), hidden, tied)
        return points

    with jax.default_matmul_precision("highest"):
        points = jax.device_get(run(params(), batch))
    return {name: x[batch.real_BxT] for name, x in points.items()}


def gradient_points(batch: Inputs) -> dict[str, np.ndarray]:
    """loss, and gradient/* under Hugging Face names and in its layout."""
    cfg = config()
    count = (batch.real_BxT[:, 1:]).sum()

    @jax.jit
    @jax.value_and_grad
    def run(tree, batch):
        logits = decoder.logits(tree, forward(tree, batch, cfg), cfg)
        return -logprobs(logits, batch).sum() / count

    with jax.default_matmul_precision("highest"):
        loss, grads = jax.device_get(run(params(), batch))
    tower, layers = grads.vision.layers, grads.layers

    def matrix(x):
        return x.reshape(x.shape[0], -1).T

    patch = stored()["weights/model.visual.patch_embed.proj.weight"].shape
    text, visual = "model.language_model.", "model.visual."
    named = {
        visual + "patch_embed.proj.weight": grads.vision.patch.T.reshape(patch),
        visual + "blocks.0.attn.qkv.weight": matrix(tower.qkv[0]),
        visual + "blocks.1.attn.qkv.bias": tower.qkv_bias[1].reshape(-1),
        visual + "blocks.3.mlp.down_proj.weight": matrix(tower.down[3]),
        visual + "merger.ln_q.weight": grads.vision.merge_norm,
        visual + "merger.mlp.2.weight": matrix(grads.vision.merge_out),
        text + "layers.0.self_attn.q_proj.weight": matrix(layers.q[0]),
        text + "layers.2.self_attn.k_proj.bias": layers.k_bias[2].reshape(-1),
        text + "embed_tokens.weight": grads.embed,
    }
    return {"loss": loss} | {f"gradient/{name}": value for name, value in named.items()}


def decode_points(batch: Inputs) -> dict[str, np.ndarray]:
    """greedy and greedy_logits: prefill with images, then a token at a time from the cache."""
    cfg, (B, T) = config(), batch.tokens_BxT.shape
    lengths, n = jnp.asarray(stored()["lengths"]), stored()["greedy"].shape[1]

    @jax.jit
    def run(tree, batch):
        features = vision.encode(tree.vision, batch.pixels, cfg)
        hidden, cache = decoder.forward_cached(
            tree,
            jnp.asarray(batch.tokens_BxT),
            jnp.broadcast_to(jnp.arange(T), (B, T)),
            decoder.empty_cache(cfg, B, T + n),
            cfg,
            rotary_positions=jnp.asarray(batch.positions_BxTx3),
            images=decoder.ImageTokens(features, jnp.asarray(batch.index_BxT)),
        )
        last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]

        def step(carry, i):
            last, cache = carry
            scores = decoder.logits(tree, last, cfg)
            token = jnp.argmax(scores, axis=-1)
            slots = lengths + i
            turned = jnp.broadcast_to((slots + batch.deltas_B)[:, None, None], (B, 1, 3))
            hidden, cache = decoder.forward_cached(
                tree, token[:, None], slots[:, None], cache, cfg, rotary_positions=turned
            )
            return (hidden[:, 0], cache), (token, scores)

        return jax.lax.scan(step, (last, cache), jnp.arange(n))[1]

    with jax.default_matmul_precision("highest"):
        tokens, scores = jax.device_get(run(params(), batch))
    return {"greedy": tokens.T, "greedy_logits": scores.swapaxes(0, 1)}
