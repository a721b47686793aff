"""What a rollout does on the device: slots of samples in flight, as a handful of jitted functions."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from models import decoder
from models.config import ModelConfig
from models.decoder import Cache
from models.shared import Constrain
from selfevolve_jax.rollout.prompt_images import FEATURE_AXES
from selfevolve_jax.rollout.sampling import (
    Sampling,
    sample,
    token_stats,
    top_tokens,
    without_image_token,
)

# What a chunk records of each token, by the field that it fills; two more with statistics.
DRAWN = {"tokens_RxGxM": np.int32, "logprobs_RxGxM": np.float32}
DRAWN_STATS = DRAWN | {"entropy_RxGxM": np.float32, "certainty_RxGxM": np.float32}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """The state of S samples in flight. `position` is that of `last_token`, which is fed next;
    `shift` is what its rotary position differs by, where the prompt shows images."""

    cache: Cache  # [L, S, C, N, K]
    last_token: jax.Array  # int32 [S]
    position: jax.Array  # int32 [S]
    shift: jax.Array  # int32 [S]
    generated: jax.Array  # int32 [S]
    active: jax.Array  # bool [S]
    key: jax.Array  # key [S]


def casts(cfg: ModelConfig) -> bool:
    """Whether a rollout reads its weights from a copy in the dtype of products."""
    return cfg.dtype != cfg.param_dtype or bool(cfg.lora.rank)


@functools.partial(jax.jit, static_argnames="dtype")
def cast_once(params: decoder.Params, dtype: str) -> decoder.Params:
    """What every product casts to anyway, cast once a rollout and not once a token. Norms stay, as
    they are computed in float32."""

    def cast(path, leaf):
        return leaf if "norm" in jax.tree_util.keystr(path) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


@functools.partial(jax.jit, static_argnames=("cfg", "constrain"))
def prefill(
    params, tokens_RxP, seen: tuple | None, cfg: ModelConfig, constrain: Constrain
) -> Cache:
    """seen: None, or (features of all prompts, which of them each row is, index_RxP,
    rotary positions [R, P, 3])."""
    R, P = tokens_RxP.shape
    positions = jnp.broadcast_to(jnp.arange(P), (R, P))
    images = rotary = None
    if seen is not None:
        features, rows_R, index_RxP, rotary = seen
        images = decoder.ImageTokens(constrain(features[rows_R], FEATURE_AXES), index_RxP)
    cache = decoder.empty_cache(cfg, R, P)
    return decoder.forward_cached(
        params, tokens_RxP, positions, cache, cfg, constrain, rotary, images
    )[1]


@functools.partial(jax.jit, donate_argnames=("slots",))
def admit(
    slots: Slots,
    prompts: Cache,
    source_S,
    last_token_S,
    position_S,
    shift_S,
    row_S,
    sample_S,
    key,
):
    """Gives every slot with source ≥ 0 to a new sample of prompt `source`. key: one, or one a slot."""
    new_S = source_S >= 0
    width = prompts.capacity

    def copy(held, prompt):
        there = held[:, :, :width]
        mine = jnp.where(new_S[None, :, None, None, None], prompt[:, source_S], there)
        return held.at[:, :, :width].set(mine)

    def fold(key, row, sample):
        return jax.random.fold_in(jax.random.fold_in(key, row), sample)

    keys = jax.vmap(fold)(jnp.broadcast_to(key, row_S.shape), row_S, sample_S)
    return Slots(
        cache=Cache(copy(slots.cache.k, prompts.k), copy(slots.cache.v, prompts.v)),
        last_token=jnp.where(new_S, last_token_S, slots.last_token),
        position=jnp.where(new_S, position_S, slots.position),
        shift=jnp.where(new_S, shift_S, slots.shift),
        generated=jnp.where(new_S, 0, slots.generated),
        active=new_S | slots.active,
        key=jnp.where(new_S, keys, slots.key),
    )


@functools.partial(
    jax.jit,
    static_argnames=("steps", "cfg", "constrain", "stats", "top"),
    donate_argnames=("slots",),
)
def decode_chunk(
    params,
    slots: Slots,
    sampling: Sampling,
    stop_tokens,
    limit,
    steps,
    cfg,
    constrain,
    stats=False,
    top=0,
):
    """Up to `steps` tokens for every active slot: (slots, what was drawn as arrays [S, steps] in the
    order of `DRAWN`, or with `stats` of `DRAWN_STATS`).

    All slots may share the values of `sampling` (scalars), `stop_tokens` [N] and `limit` (scalar), or
    each has its own: [S, 1], [S, N] and [S]. top: with T > 0 also three more arrays, as
    `sampling.top_tokens` gives them: [S, steps], [S, steps, T] and [S, steps, T].
    """
    S = slots.position.shape[0]
    rows = jnp.arange(S)

    def body(carry):
        i, slots, drawn = carry
        hidden, cache = decoder.forward_cached(
            params,
            slots.last_token[:, None],
            slots.position[:, None],
            slots.cache,
            cfg,
            constrain,
            rotary_positions=(slots.position + slots.shift)[:, None],
        )
        scores_SxV = decoder.logits(params, hidden[:, 0], cfg)
        keys = jax.vmap(jax.random.fold_in)(slots.key, slots.generated)
        token, logprob = sample(without_image_token(scores_SxV, cfg), sampling, keys)
        active, generated = slots.active, slots.generated + slots.active
        stop = jnp.any(token[:, None] == stop_tokens, axis=-1) | (generated >= limit)
        slots = Slots(
            cache=cache,
            last_token=jnp.where(active, token, slots.last_token),
            position=slots.position + active,
            shift=slots.shift,
            generated=generated,
            active=active & ~stop,
            key=slots.key,
        )
        new = (token, logprob, *(token_stats(scores_SxV, sampling) if stats else ()))
        if top:
            new += top_tokens(without_image_token(scores_SxV, cfg), token, top)
        drawn = tuple(
            held.at[rows, i].set(jnp.where(active.reshape(S, *[1] * (x.ndim - 1)), x, 0))
            for held, x in zip(drawn, new, strict=True)
        )
        return i + 1, slots, drawn

    dtypes = (DRAWN_STATS if stats else DRAWN).values()
    empty = [jnp.zeros((S, steps), dtype) for dtype in dtypes]
    if top:
        shapes = (
            ((S, steps), jnp.float32),
            *(((S, steps, top), d) for d in (jnp.int32, jnp.float32)),
        )
        empty += [jnp.zeros(*shape) for shape in shapes]
    _, slots, drawn = jax.lax.while_loop(
        lambda carry: (carry[0] < steps) & jnp.any(carry[1].active),
        body,
        (0, slots, tuple(empty)),
    )
    return slots, drawn


@functools.partial(jax.jit, static_argnames="capacity")  # not donated: no output has that shape
def grow(slots: Slots, capacity: int) -> Slots:
    pad = [(0, 0), (0, 0), (0, capacity - slots.cache.capacity), (0, 0), (0, 0)]
    return replace(slots, cache=Cache(jnp.pad(slots.cache.k, pad), jnp.pad(slots.cache.v, pad)))


@jax.jit
def compact(slots: Slots, keep: jax.Array) -> Slots:
    cache = Cache(slots.cache.k[:, keep], slots.cache.v[:, keep])
    rest = jax.tree.map(lambda x: x[keep], replace(slots, cache=None))
    return replace(rest, cache=cache)


@functools.partial(jax.jit, static_argnames=("capacity", "constrain"))
def refit(
    slots: Slots, keep: jax.Array, live: jax.Array, capacity: int, constrain: Constrain
) -> Slots:
    """Slots in any other number and capacity: the new slot s is the old one keep[s], still active if
    live[s]. No live one may have a position at or beyond the capacity."""

    def fit(x):
        x = x[:, :, :capacity]
        x = jnp.pad(x, [(0, 0), (0, 0), (0, capacity - x.shape[2]), (0, 0), (0, 0)])
        return constrain(x[:, keep], decoder.CACHE_AXES)

    rest = jax.tree.map(lambda x: x[keep], replace(slots, cache=None))
    cache = Cache(fit(slots.cache.k), fit(slots.cache.v))
    return replace(rest, cache=cache, active=rest.active & live)


@functools.partial(jax.jit, static_argnames=("cfg", "constrain", "S", "capacity"))
def empty_slots(S: int, capacity: int, cfg: ModelConfig, constrain: Constrain) -> Slots:
    zeros = jnp.zeros(S, jnp.int32)
    cache = decoder.empty_cache(cfg, S, capacity)
    cache = Cache(*(constrain(x, decoder.CACHE_AXES) for x in (cache.k, cache.v)))
    keys = jax.random.split(jax.random.key(0), S)
    return Slots(cache, zeros, zeros, zeros, zeros, zeros.astype(bool), keys)
