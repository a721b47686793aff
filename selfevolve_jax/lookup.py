"""A start from which a small decoder learns within minutes to look words up in its prompt, and to judge
whether what was done is what the prompt asks for.

To find `Zoe` in a list, and to go on with what follows it there, takes parts that are of no use one
without the others: a head of the first layer that tells every token of the one before it, a head of the
second that finds the token that came after the present one's like (these two are an induction head,
Olsson et al. 2022, arXiv 2209.11895), and a way for what it finds to be said. From random weights a
decoder of half a million parameters does not come upon them in the minutes that a laptop has: asked for
one of eight places in a list, it gave the right one a probability of .06 after 600 steps.

To judge, it has to find whether a word of what was done stands in the goal, and not only in the list.
So another head of the first layer tells every token which part of the prompt it is in, by the mark that
the part begins with, one of the second finds in which parts the same token stands, and heads of the
third look back from a judgement to the word that it hangs on.

It begins with these heads roughly set. Training does the rest, and may undo it.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_NEAR, _MARK = 4.0, 17.0  # of two marks the nearer counts, and any mark counts before what is none
_QUIET = 0.1  # of the first layer's MLP, which else hides from the second what a token is
# Beside embeddings of length 1.
_PASSED, _PART, _SAID, _SAME = 0.2, 0.7, 0.3, 0.6


def check_lookup(cfg: ModelConfig) -> None:
    """UserError for a model of fewer layers than three or fewer heads than two, with fewer of keys than
    of queries, without biases or with untied embeddings, or whose head is wider than half of the
    model."""
    narrow = 2 * cfg.head_dim <= cfg.d_model
    heads = cfg.n_heads == cfg.n_kv_heads >= 2
    if cfg.n_layers < 3 or not (heads and cfg.qkv_bias and cfg.tie_embeddings and narrow):
        raise UserError(
            f"policy.model has n_layers={cfg.n_layers}, n_heads={cfg.n_heads}, n_kv_heads="
            f"{cfg.n_kv_heads}, head_dim={cfg.head_dim} of d_model={cfg.d_model}, qkv_bias="
            f"{cfg.qkv_bias}, tie_embeddings={cfg.tie_embeddings}, and cannot start with heads that "
            "look words up. Use 3 layers or more, 2 heads or more and as many of keys, heads of at "
            "most half of d_model, and both of the others true."
        )


def with_lookup(
    params: Params, cfg: ModelConfig, marks: Sequence[int], back: tuple[int, int], seed: int
) -> Params:
    """The parameters with heads 0 and 1 of the first three layers set as above, and with a first MLP
    that says little, placed as they were. marks: the tokens, at most head_dim, that parts of a prompt
    begin with; what tells of them has as many dimensions for its own, which the embeddings lose. back:
    how many tokens before a judgement the word stands that it hangs on, in two kinds of question.
    UserError as `check_lookup`."""
    check_lookup(cfg)
    D, K = cfg.d_model, cfg.head_dim
    rng = np.random.default_rng(seed)
    angle = np.tile(rope.frequencies(K, cfg.rope_theta, cfg.rope_scaling)[0], 2)
    fast, cosine = angle > _FAST, np.arange(K) < K // 2
    near = fast & cosine
    # Turned by its position, a query with this bias is the key of a token n before.
    turned = {n: fast * np.where(cosine, np.cos(n * angle), -np.sin(n * angle)) for n in (1, *back)}
    # Where a word itself is written, where the one before it, and within that where its part is.
    own, before = np.split(_directions(rng, D)[:, : 2 * K], 2, axis=1)
    part = before[:, : len(marks)]
    table = np.array(params.embed)
    table -= table @ part @ part.T
    unit = table[list(marks)] / np.linalg.norm(table[list(marks)], axis=1, keepdims=True)
    # A norm goes before each layer, so a token's embedding comes to it as long as this.
    length = np.sqrt(D)

    names = ("q", "k", "v", "o", "q_bias", "k_bias", "down")
    old = {name: getattr(params.layers, name) for name in names}
    new = {name: np.array(array) for name, array in old.items()}
    for layer, head, n in ((0, 0, 1), (2, 0, back[0]), (2, 1, back[1])):
        new["q"][layer, :, head] = new["k"][layer, :, head] = 0.0
        new["q_bias"][layer, head] = _SHARP * turned[n]
        new["k_bias"][layer, head] = _SHARP * near
    new["v"][0, :, 0], new["o"][0, 0] = own, before.T * _PASSED
    new["o"][0, 0, : len(marks)] = 0.0
    # The nearest mark: in the slowest dimension marks stand out, in the fast ones what is near.
    slow = K // 2 - 1
    new["q"][0, :, 1] = new["k"][0, :, 1] = 0.0
    new["q_bias"][0, 1] = new["k_bias"][0, 1] = _NEAR * near
    new["q_bias"][0, 1, slow], new["k"][0, :, 1, slow] = _MARK, unit.sum(axis=0) * _MARK / length
    new["v"][0, :, 1], new["o"][0, 1] = 0.0, before.T
    new["v"][0, :, 1, : len(marks)] = unit.T * _PART / length

    # What a token is has to be as plain to the second layer as to the first.
    new["down"][0] *= _QUIET

    new["q"][1, :, 0], new["k"][1, :, 0] = own * ~fast * _MATCH, before * ~fast * _MATCH
    said = _directions(rng, D)[:, :K]
    new["v"][1, :, 0], new["o"][1, 0] = said, said.T * _SAID
    new["q"][1, :, 1] = new["k"][1, :, 1] = own * ~fast * _MATCH
    same = _directions(rng, D)[:, :K]
    new["v"][1, :, 1], new["o"][1, 1] = 0.0, same.T * _SAME
    new["v"][1, :, 1, : len(marks)] = part
    for head in (0, 1):
        # All that the head before it found, and of the rest as much as there is room for.
        rest = rng.normal(size=(D, K - len(marks)))
        read = np.linalg.qr(np.concatenate([same[:, : len(marks)], rest], axis=1))[0]
        new["v"][2, :, head] = read
        new["o"][2, head] = _directions(rng, D)[:, :K].T * _SAID
    placed = {name: jax.device_put(new[name], array.sharding) for name, array in old.items()}
    embed = jax.device_put(table, params.embed.sharding)
    return replace(params, embed=embed, layers=replace(params.layers, **placed))


def _directions(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size], random orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(size, size)))[0]
