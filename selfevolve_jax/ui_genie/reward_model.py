"""The reward model: a vision-language model that answers `<|+|>` or `<|-|>` to a proposed action.

UI-Genie-RM (arXiv 2505.21496, section 3.1): the two answers are tokens added to the vocabulary, the
loss is −log P(right token) of the ordinary next-token softmax, and the score of an action is the
softmax over those two logits alone. "The task is done" is judged by the same head: it is the action
contract.COMPLETED. What the model reads is `contract.reward_question` and, after it, the candidate.

All candidates of a view share one row: the prompt and its screenshots are computed once, and the
candidates are branches that do not see each other (`sft.supervised_batch`), in training as in scoring.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from models import decoder, vision
from models.config import ModelConfig
from models.shared import Constrain
from selfevolve_jax import sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.images import Picture, load_image, preprocess
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.sft import Pair, packed_batch, supervised_batch
from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.contract import (
    NEGATIVE,
    POSITIVE,
    Style,
    View,
    candidate_tokens,
    reward_question,
    split_tokens,
)
from selfevolve_jax.ui_genie.training import check_length

_NOISE, _ORDER = 601, 602  # purposes of random draws
# A vocabulary that has to grow grows to a multiple of this, so that it still divides over a mesh.
_VOCABULARY_STEP = 64
_SHORTEST = 64  # tokens of a row; longer ones are rounded up to a bucket

# Actions of one view, and whether each is right.
Judged = tuple[View, Sequence[tuple[Action, bool]]]
# Tokens of a view up to the candidate, and those of each candidate up to the answer.
Row = tuple[tuple[int, ...], list[tuple[int, ...]]]


@dataclass(frozen=True)
class RewardTraining:
    """The paper's settings. batch: views in an optimiser step, each with all its judged actions (the
    paper's 160 rows have one each); the loss is the mean over the judged actions of the step. epochs:
    how often each view is seen, 1 by default. steps: of every training in place of epochs, as for the
    agent. accumulate: pieces that a step's gradient is summed from."""

    batch: int = 160
    epochs: int | None = None
    steps: int | None = None
    accumulate: int = 1
    train_vision: bool = False
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"reward.{name}={getattr(self, name)} must be at least 1.")
        check_length("reward.", self.epochs, self.steps)


def with_reward_tokens(policy: Policy, seed: int) -> Policy:
    """The policy with `<|+|>` and `<|-|>` in its tokenizer, as special tokens, and in its embedding,
    and output where that is untied; the same policy if it has them already.

    Their rows start at the mean of the rows of all other tokens, with noise of a tenth of those rows'
    spread, which tells the two apart. Rows that a checkpoint has to spare (Qwen2.5-VL's has some
    hundreds more than its tokenizer has tokens) are used before the vocabulary grows, by a multiple of
    64 rows. Parameters stay sharded as they are; the given policy is left as it is.
    """
    known = policy.tokenizer.get_vocab()
    missing = [token for token in (POSITIVE, NEGATIVE) if token not in known]
    if not missing:
        answers(policy)
        return policy
    from transformers import AddedToken

    # A copy, as tokenizers change in place and the agent keeps its own.
    tokenizer, used = copy.deepcopy(policy.tokenizer), max(known.values()) + 1
    added = [AddedToken(token, special=True, normalized=False) for token in missing]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": added}, replace_extra_special_tokens=False
    )
    fresh = tuple(tokenizer.convert_tokens_to_ids(token) for token in missing)
    old, size = policy.model.vocab_size, policy.model.vocab_size
    if max(fresh) >= old:
        where = policy.params.embed.sharding
        ways = old // where.shard_shape(policy.params.embed.shape)[0]
        step = math.lcm(_VOCABULARY_STEP, ways)
        size = -(-(max(fresh) + 1) // step) * step
    key = jax.random.fold_in(jax.random.key(seed), _NOISE)
    params = policy.params

    def grown(table: jax.Array, number: int, axis: int) -> jax.Array:
        add = jax.jit(
            partial(_grown, used=min(used, old), size=size, fresh=fresh, axis=axis),
            out_shardings=table.sharding,
        )
        return add(table, jax.random.fold_in(key, number))

    params = replace(params, embed=grown(params.embed, 0, 0))
    if params.head is not None:
        params = replace(params, head=grown(params.head, 1, 1))
    model = replace(policy.model, vocab_size=size)
    made = replace(policy, params=params, model=model, tokenizer=tokenizer)
    answers(made)
    return made


def answers(rm: Policy) -> tuple[int, int]:
    """The ids of `<|+|>` and `<|-|>`. UserError for a policy that has not both, each as one token."""
    ids = [rm.tokenizer.encode(t, add_special_tokens=False) for t in (POSITIVE, NEGATIVE)]
    vocabulary = rm.tokenizer.get_vocab()
    if [vocabulary.get(t) for t in (POSITIVE, NEGATIVE)] != [i[0] for i in ids if len(i) == 1]:
        raise UserError(
            f"tokenizer {rm.tokenizer.name_or_path!r} does not have {POSITIVE} and {NEGATIVE} as "
            "tokens, so it is no reward model's; fix: reward_model.with_reward_tokens, then train"
        )
    if max(ids)[0] >= rm.model.vocab_size:
        raise UserError(
            f"{POSITIVE} and {NEGATIVE} are tokens {ids[0][0]} and {ids[1][0]}, and the model has "
            f"vocab_size={rm.model.vocab_size}; fix: the tokenizer that the model was saved with"
        )
    return ids[0][0], ids[1][0]


def reward_row(rm: Policy, view: View, actions: Sequence[Action], style: Style) -> Row:
    """What the model reads of a view and its candidates. The closing text of a chat template comes
    after each candidate, so that the answer begins the assistant's turn."""
    system, question = reward_question(view, style)
    before, closing = split_tokens(
        rm.tokenizer, rm.model.vision, rm.images, system, question, view.screenshots
    )
    return before, [(*candidate_tokens(rm.tokenizer, a, style), *closing) for a in actions]


def score(
    rm: Policy,
    asked: Sequence[tuple[View, Sequence[Action]]],
    style: Style,
    mesh: Mesh,
    rows_at_once: int = 8,
) -> list[list[float]]:
    """P(+) of every action after its view, in the order asked: softmax over the two answers' logits.

    A score depends on its view and action alone, not on what else is asked. rows_at_once: views that
    are computed together on each part of the mesh that a batch is split over; a batch of fewer is
    padded, and its length rounded up, so that a handful of shapes are compiled.
    """
    ids = np.array(answers(rm), np.int32)
    scores: list[list[float]] = [[math.nan] * len(actions) for _, actions in asked]
    rows = {i: reward_row(rm, view, given, style) for i, (view, given) in enumerate(asked) if given}
    # Rows of like length together, so that little is padding.
    order = sorted(rows, key=lambda i: -_length(rows[i]))
    B = rows_at_once * sharding.batch_ways(mesh)
    constrain = sharding.constrainer(mesh)
    pending: list[tuple[list[int], np.ndarray, jax.Array]] = []

    def take() -> None:
        which, sequence, positive = pending.pop()
        judged = sharding.to_host(positive)[sequence >= 0]  # row by row, candidate by candidate
        at = 0
        for i in which:
            n = len(scores[i])
            scores[i], at = [float(p) for p in judged[at : at + n]], at + n

    for start in range(0, len(order), B):
        which = order[start : start + B]
        some = [rows[i] for i in which]
        pictures = [_pictures(rm, asked[i][0]) for i in which]
        length = bucket(max(map(_length, some)), _SHORTEST)
        told = _told(some, None, ids)
        batch = supervised_batch(told, length, pictures, rm.model.vision, multiple=B)
        placed = sharding.put_batch(batch, mesh)
        positive = _positive(rm.params, placed, ids, rm.model, constrain)
        if pending:  # the batch before: the device goes on while the host reads
            take()
        pending.append((which, batch.sequence_ids_BxT, positive))
    if pending:
        take()
    return scores


def training_steps(views: int, config: RewardTraining) -> int:
    """Optimiser steps of a training on so many views: as many as `batches` has batches."""
    return -(-_shown(views, config) // config.batch)


def _shown(views: int, config: RewardTraining) -> int:
    """How many views a training shows, each as often as it comes."""
    return views * (config.epochs or 1) if config.steps is None else config.steps * config.batch


def batches(
    rm: Policy,
    views: Sequence[Any],
    load: Callable[[Any], Judged],
    style: Style,
    config: RewardTraining,
    seed: int,
    mesh: Mesh,
    done: int = 0,
) -> Iterator[Batch]:
    """The batches of a training on judged actions after the first `done`, on the host, for
    `sft.supervised_step`: its loss is then −log P(right token), the mean over a batch's judged actions.

    views: as many as there are, each in a form of the caller's choice (a reference, so that the
    pictures of a large set need not be in memory), which `load` turns into the view and its judged
    actions when its turn comes. They come in permutations that follow from the seed alone, every view
    config.epochs times, or until there were config.steps batches. Views share rows, as in
    `agent.sft_batches`. UserError without a view.
    """
    if not views:
        raise UserError("there is no judged action to train a reward model on; fix: data with rows")
    ids = np.array(answers(rm), np.int32)
    # Rows divide over the mesh and, on it, over the pieces of a step.
    pieces = sharding.batch_ways(mesh) * config.accumulate
    for picked in _order(len(views), config, seed, done):
        judged = [load(views[i]) for i in picked]
        rows = [reward_row(rm, view, [a for a, _ in given], style) for view, given in judged]
        labels = [[right for _, right in given] for _, given in judged]
        pictures = [_pictures(rm, view) for view, _ in judged]
        told = _told(rows, labels, ids)
        yield packed_batch(told, config.batch, pieces, pictures, rm.model.vision)


def _order(n: int, config: RewardTraining, seed: int, done: int) -> Iterator[list[int]]:
    """The views of each step after the first `done`: epochs one after another, each a permutation of
    its own."""
    epoch, order, total = -1, np.zeros(0, int), _shown(n, config)
    for start in range(done * config.batch, total, config.batch):
        picked = []
        for at in range(start, min(start + config.batch, total)):
            if at // n != epoch:
                epoch = at // n
                order = np.random.default_rng([seed, _ORDER, epoch]).permutation(n)
            picked.append(int(order[at % n]))
        yield picked


def _told(
    rows: Sequence[Row], labels: Sequence[Sequence[bool]] | None, ids: np.ndarray
) -> list[tuple[tuple[int, ...], list[Pair]]]:
    """For `supervised_batch`. Each candidate's response is its right answer, or `+` without labels,
    where only its place counts."""
    told: list[tuple[tuple[int, ...], list[Pair]]] = []
    for i, (before, texts) in enumerate(rows):
        right = [True] * len(texts) if labels is None else labels[i]
        answer = [[int(ids[0 if yes else 1])] for yes in right]
        told.append((before, list(zip(texts, answer, strict=True))))
    return told


def _pictures(rm: Policy, view: View) -> list[Picture]:
    tower, images = rm.model.vision, rm.images
    assert tower is not None and images is not None  # else `reward_row` has refused
    return [preprocess(load_image(png), images, tower) for png in view.screenshots]


def _length(row: Row) -> int:
    """In tokens, with an answer after each candidate."""
    before, texts = row
    return len(before) + sum(len(text) + 1 for text in texts)


@partial(jax.jit, static_argnames=("cfg", "constrain"))
def _positive(
    params: decoder.Params, batch: Batch, ids: jax.Array, cfg: ModelConfig, constrain: Constrain
) -> jax.Array:
    """P(first of two tokens) [B, T], float32, where each answer stands; no other logit is computed."""
    assert params.vision is not None and batch.pixels is not None  # a view has a screenshot
    features = vision.encode(params.vision, batch.pixels, cfg, constrain)
    hidden_BxTxD = decoder.forward(
        params,
        batch.tokens_BxT,
        batch.positions,
        batch.segment_ids_BxT,
        batch.branch_ids_BxT,
        cfg,
        constrain,
        decoder.ImageTokens(features, batch.image_index_BxT),
    )
    rows_2xD = params.embed[ids] if cfg.tie_embeddings else params.head[:, ids].T
    logits_BxTx2 = jnp.einsum(
        "btd,nd->btn",
        hidden_BxTxD,
        rows_2xD.astype(hidden_BxTxD.dtype),
        preferred_element_type=jnp.float32,
    )
    positive_BxT = jax.nn.sigmoid(logits_BxTx2[..., 0] - logits_BxTx2[..., 1])
    return constrain(
        jnp.take_along_axis(positive_BxT, batch.source_BxT, axis=1), ("batch", "length")
    )


def _grown(
    table: jax.Array, key: jax.Array, used: int, size: int, fresh: tuple[int, ...], axis: int
) -> jax.Array:
    """A table of token vectors along `axis`, with `size` tokens: those that it had, and new ones (the
    `fresh`, and all that it had not) at the mean of the first `used`, with noise."""
    rows = jnp.moveaxis(table, axis, 0).astype(jnp.float32)
    known = jnp.arange(rows.shape[0])[:, None] < used
    mean = jnp.where(known, rows, 0.0).sum(0) / used
    spread = jnp.sqrt(jnp.where(known, (rows - mean) ** 2, 0.0).sum() / (used * rows.shape[1]))
    new = mean + 0.1 * spread * jax.random.normal(key, (size, rows.shape[1]))
    index = jnp.arange(size)[:, None]
    here = jnp.isin(index, jnp.array(fresh)) | (index >= rows.shape[0])
    kept = jnp.pad(rows, [(0, size - rows.shape[0]), (0, 0)])
    return jnp.moveaxis(jnp.where(here, new, kept), 0, axis).astype(table.dtype)
