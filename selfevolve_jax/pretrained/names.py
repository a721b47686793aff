"""Which Hugging Face tensor each parameter is, and how its axes lie there. One table, read by the
loader and by the export.

Hugging Face keeps a matrix as [out, in] with heads inside `out`; here it is [in..., out...] with
heads apart, and a layer's weights are stacked on a leading L axis. Names are those of the published
checkpoints (`model.*`, `visual.*`); `published` also understands the newer ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from models import decoder
from models.config import ModelConfig

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Weight:
    """One parameter, or one layer of a stacked one, as a Hugging Face tensor.

    name: with {} for the layer's number. shape: of the tensor there. rows, columns: axes of our
    array (without L) that lie there, flattened, in the first dimension and in the rest of them.
    """

    name: str
    stacked: bool
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def turned(self) -> bool:
        """Whether our array, as a matrix, is that tensor's transpose."""
        return bool(self.columns) and self.columns[0] < self.rows[0]


# (name, how): "vector" flat as it is; "table" [rows, columns] as it is; a number: a matrix whose
# first so many axes, here, are its inputs.
_Entry = tuple[str, str | int]

_TOP: dict[str, _Entry] = {
    "embed": (EMBED, "table"),
    "final_norm": ("model.norm.weight", "vector"),
    "head": (HEAD, 1),
}
_LAYERS: dict[str, _Entry] = {
    "attn_norm": ("input_layernorm.weight", "vector"),
    "q": ("self_attn.q_proj.weight", 1),
    "k": ("self_attn.k_proj.weight", 1),
    "v": ("self_attn.v_proj.weight", 1),
    "o": ("self_attn.o_proj.weight", 2),
    "q_bias": ("self_attn.q_proj.bias", "vector"),
    "k_bias": ("self_attn.k_proj.bias", "vector"),
    "v_bias": ("self_attn.v_proj.bias", "vector"),
    "q_norm": ("self_attn.q_norm.weight", "vector"),
    "k_norm": ("self_attn.k_norm.weight", "vector"),
    "mlp_norm": ("post_attention_layernorm.weight", "vector"),
    "gate": ("mlp.gate_proj.weight", 1),
    "up": ("mlp.up_proj.weight", 1),
    "down": ("mlp.down_proj.weight", 1),
}
_VISION: dict[str, _Entry] = {
    "patch": ("visual.patch_embed.proj.weight", 1),
    "merge_norm": ("visual.merger.ln_q.weight", "vector"),
    "merge_in": ("visual.merger.mlp.0.weight", 1),
    "merge_in_bias": ("visual.merger.mlp.0.bias", "vector"),
    "merge_out": ("visual.merger.mlp.2.weight", 1),
    "merge_out_bias": ("visual.merger.mlp.2.bias", "vector"),
}
_VISION_LAYERS: dict[str, _Entry] = {
    "attn_norm": ("norm1.weight", "vector"),
    "qkv": ("attn.qkv.weight", 1),
    "qkv_bias": ("attn.qkv.bias", "vector"),
    "o": ("attn.proj.weight", 2),
    "o_bias": ("attn.proj.bias", "vector"),
    "mlp_norm": ("norm2.weight", "vector"),
    "gate": ("mlp.gate_proj.weight", 1),
    "gate_bias": ("mlp.gate_proj.bias", "vector"),
    "up": ("mlp.up_proj.weight", 1),
    "up_bias": ("mlp.up_proj.bias", "vector"),
    "down": ("mlp.down_proj.weight", 1),
    "down_bias": ("mlp.down_proj.bias", "vector"),
}


def table(cfg: ModelConfig) -> dict[str, Weight]:
    """Every parameter of `cfg` by its dotted path in `decoder.Params` ("layers.q"). No adapters:
    they have no place in a Hugging Face model, so they are merged before an export."""
    assert cfg.lora.rank == 0, "merge the adapters first"
    found = {}
    for path, spec in jax.tree_util.tree_leaves_with_path(decoder.abstract_params(cfg)):
        parts = [key.name for key in path]
        found[".".join(parts)] = _weight(parts, spec.shape, cfg)
    return found


def tensors(cfg: ModelConfig) -> dict[str, tuple[str, int | None, Weight]]:
    """Every tensor name of a published checkpoint with (dotted path, layer, weight), layer by
    layer. A tied head has none of its own."""
    top, layers = [], {}
    for path, weight in table(cfg).items():
        if not weight.stacked:
            top.append((weight.name, (path, None, weight)))
            continue
        for i in range(cfg.vision.n_layers if path.startswith("vision.") else cfg.n_layers):  # pyright: ignore
            layers.setdefault((path.startswith("vision."), i), []).append(
                (weight.name.format(i), (path, i, weight))
            )
    return dict(top) | dict(pair for key in sorted(layers) for pair in layers[key])


def published(name: str) -> str:
    """A tensor's name as published checkpoints have it: newer transformers put the two halves of a
    vision-language model under `model.visual` and `model.language_model`."""
    for new, old in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def inert(name: str) -> bool:
    """Whether a tensor is a constant that some versions of transformers saved beside the weights."""
    return name.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq"))


def _weight(parts: list[str], shape: tuple[int, ...], cfg: ModelConfig) -> Weight:
    stacked = "layers" in parts
    if parts[0] == "vision":
        assert cfg.vision is not None
        name, how = (_VISION_LAYERS if stacked else _VISION)[parts[-1]]
        name = f"visual.blocks.{{}}.{name}" if stacked else name
    else:
        name, how = (_LAYERS if stacked else _TOP)[parts[-1]]
        name = f"model.layers.{{}}.{name}" if stacked else name
    ours = shape[1:] if stacked else shape
    axes = tuple(range(len(ours)))
    if how == "vector":
        return Weight(name, stacked, (math.prod(ours),), axes, ())
    if how == "table":
        return Weight(name, stacked, ours, axes[:1], axes[1:])
    assert isinstance(how, int)
    out, into = math.prod(ours[how:]), math.prod(ours[:how])
    there: tuple[int, ...] = (out, into)
    if parts == ["vision", "patch"]:  # a convolution there: [out, channel, frame, row, column]
        v: Any = cfg.vision
        there = (out, v.channels, v.temporal, v.patch, v.patch)
    return Weight(name, stacked, there, axes[how:], axes[:how])
