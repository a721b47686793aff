"""Which parameters training changes: all, all but the vision tower, or adapters alone.

The rest gets no gradient and no optimiser state. A mask is a tuple with one bool a leaf, in the
tree's order, hashable so that jit may take it as static; None is short for all.
"""

from __future__ import annotations

from typing import Any

import jax

from models import decoder
from models.config import ModelConfig

Mask = tuple[bool, ...] | None


def trainable_mask(model: ModelConfig, train_vision: bool) -> tuple[bool, ...]:
    """Adapters alone where the model has them; else everything, the vision tower by `train_vision`."""
    paths = jax.tree_util.tree_leaves_with_path(decoder.abstract_params(model))
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    if model.lora.rank:
        return tuple(".lora[" in name for name in names)
    return tuple(train_vision or not name.startswith(".vision.") for name in names)


def trains_vision(model: ModelConfig, train_vision: bool) -> bool:
    """Whether the tower changes, so that images must be encoded again in every update."""
    if model.vision is None:
        return False
    return model.lora.vision if model.lora.rank else train_vision


def split(params: Any, mask: Mask) -> tuple[Any, Any]:
    """(trainable, frozen): two trees of the same form, each with None where the other has a leaf."""
    leaves, treedef = jax.tree.flatten(params)
    mask = (True,) * len(leaves) if mask is None else mask
    parts = (
        [leaf if own == kept else None for leaf, own in zip(leaves, mask, strict=True)]
        for kept in (True, False)
    )
    trainable, frozen = (jax.tree.unflatten(treedef, part) for part in parts)
    return trainable, frozen


def join(trainable: Any, frozen: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None
    )
