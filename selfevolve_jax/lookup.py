"""A start from which a small decoder learns within minutes to look words up in its prompt.

To find `Zoe` in a list, and to go on with what follows it there, takes parts that are of no use one
without the others: a head of the first layer that tells every token of the one before it, a head of the
second that finds the token that came after the present one's like (these two are an induction head,
Olsson et al. 2022, arXiv 2209.11895), and a way for what it finds to be said. From random weights a
decoder of half a million parameters does not come upon them in the minutes that a laptop has: asked for
one of eight places in a list, it gave the right one a probability of .06 after 600 steps.
So it begins with these heads roughly set, and with one of the third layer that looks back by two
tokens, for those that must judge at a sentence's end what was found in its middle. Training does the
rest, and may undo it.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from models import rope
from models.config import ModelConfig
from models.decoder import Params
from selfevolve_jax.errors import UserError

# Radians a token. Above, a pair of dimensions turns too fast to compare words over a long list with,
# and tells neighbours apart.
_FAST = 0.01
_SHARP = 5.0  # of a bias: the first layer's head gives the token before some 0.8 of its attention
_MATCH = 2.0
_PASSED, _SAID = 0.2, 0.3  # beside embeddings of length 1


def check_lookup(cfg: ModelConfig) -> None:
    """UserError for a model of fewer layers than three, without biases or with untied embeddings, or
    whose head is wider than half of the model."""
    narrow = 2 * cfg.head_dim <= cfg.d_model
    if cfg.n_layers < 3 or not (cfg.qkv_bias and cfg.tie_embeddings and narrow):
        raise UserError(
            f"policy.model has n_layers={cfg.n_layers}, head_dim={cfg.head_dim} of d_model="
            f"{cfg.d_model}, qkv_bias={cfg.qkv_bias}, tie_embeddings={cfg.tie_embeddings}, and cannot "
            "start with heads that look words up. Use 3 layers or more, heads of at most half of "
            "d_model, and both of the others true."
        )


def with_lookup(params: Params, cfg: ModelConfig, seed: int) -> Params:
    """The parameters with head 0 of the first three layers set as above, placed as they were. UserError
    as `check_lookup`."""
    check_lookup(cfg)
    D, K = cfg.d_model, cfg.head_dim
    rng = np.random.default_rng(seed)
    angle = np.tile(rope.frequencies(K, cfg.rope_theta, cfg.rope_scaling)[0], 2)
    fast, cosine = angle > _FAST, np.arange(K) < K // 2
    # Turned by its position, a query with this bias is the key of a token so many before.
    key = _SHARP * (fast & cosine)
    back = [_SHARP * fast * np.where(cosine, np.cos(n * angle), -np.sin(n * angle)) for n in (1, 2)]
    # Where a word itself is written, and where the one before it.
    own, before = np.split(_directions(rng, D)[:, : 2 * K], 2, axis=1)

    names = ("q", "k", "v", "o", "q_bias", "k_bias")
    old = {name: getattr(params.layers, name) for name in names}
    new = {name: np.array(array) for name, array in old.items()}
    for layer, bias in ((0, back[0]), (2, back[1])):
        new["q"][layer, :, 0] = new["k"][layer, :, 0] = 0.0
        new["q_bias"][layer, 0], new["k_bias"][layer, 0] = bias, key
    new["q"][1, :, 0], new["k"][1, :, 0] = own * ~fast * _MATCH, before * ~fast * _MATCH
    new["v"][0, :, 0], new["o"][0, 0] = own, before.T * _PASSED
    for layer in (1, 2):
        said = _directions(rng, D)[:, :K]
        new["v"][layer, :, 0], new["o"][layer, 0] = said, said.T * _SAID
    placed = {name: jax.device_put(new[name], array.sharding) for name, array in old.items()}
    return replace(params, layers=replace(params.layers, **placed))


def _directions(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size], random orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(size, size)))[0]
