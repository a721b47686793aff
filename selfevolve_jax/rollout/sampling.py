"""From scores to a token: temperature, top-k, top-p and min-p as traced values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from models.config import ModelConfig
from selfevolve_jax.errors import UserError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Values are traced, so changing one never compiles anything again.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off (Nguyen et al. 2024).
    """

    temperature: Any = 1.0
    top_p: Any = 1.0
    top_k: Any = 0
    min_p: Any = 0.0


def check_sampling(sampling: Sampling) -> None:
    """UserError for a value outside its range."""
    limits = {
        "temperature": (sampling.temperature >= 0, "at least 0 (0 is greedy)"),
        "top_p": (0 < sampling.top_p <= 1, "above 0 and at most 1 (1 is off)"),
        "top_k": (sampling.top_k >= 0, "at least 0 (0 is off)"),
        "min_p": (0 <= sampling.min_p < 1, "at least 0 and below 1 (0 is off)"),
    }
    for name, (fits, rule) in limits.items():
        if not fits:
            raise UserError(f"sampling.{name}={getattr(sampling, name)} must be {rule}.")


def sampling_scores(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    """Scores [B, V], float32, whose softmax is the distribution that is really sampled from. The
    values of `sampling` are scalars, or [B, 1] where each row has its own.

    Temperature first, then top-k, top-p and min-p in that order; −inf for what was cut. Ties with the
    last kept score are kept too. Greedy leaves the first best token alone, with a score of 0.
    """
    greedy = sampling.temperature <= 0
    scores = _tempered(logits_BxV, sampling)
    vocab = scores.shape[-1]

    def cut(scores):
        ordered = jnp.sort(scores, axis=-1, descending=True)
        k = jnp.where(sampling.top_k > 0, sampling.top_k, vocab)
        ordered = jnp.where(jnp.arange(vocab) < k, ordered, -jnp.inf)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        # top_p = 1 keeps everything, also where rounding makes the cumulative sum reach 1 early.
        keep = (before < sampling.top_p) | (sampling.top_p >= 1.0)
        keep &= probs >= sampling.min_p * probs[:, :1]
        keep &= ordered > -jnp.inf
        last = jnp.min(jnp.where(keep, ordered, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(scores >= last, scores, -jnp.inf)

    # The sort is the cost here; it only runs when some filter is on, and cuts nothing of other rows.
    scores = jax.lax.cond(jnp.any(_filters(sampling) & ~greedy), cut, lambda s: s, scores)
    best = jnp.argmax(scores, axis=-1, keepdims=True) == jnp.arange(vocab)
    return jnp.where(greedy, jnp.where(best, 0.0, -jnp.inf), scores)


def _tempered(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
    return logits_BxV.astype(jnp.float32) / jnp.where(
        sampling.temperature > 0, sampling.temperature, 1.0
    )


def _filters(sampling: Sampling) -> jax.Array:
    return (sampling.top_k > 0) | (sampling.top_p < 1.0) | (sampling.min_p > 0.0)


def without_image_token(logits: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Scores [..., V] in which the image token's is out of reach: what it stands for is a piece of a
    picture, which no text has. Sampler and trainer both use it, so that their log-probs agree."""
    if cfg.vision is None:
        return logits
    image = jnp.arange(logits.shape[-1]) == cfg.vision.image_token
    return jnp.where(
        image, -1e9, logits
    )  # finite, as an entropy multiplies it by its probability 0


_BLOCK = 256
_LARGE = 4096  # below, a random number for each token of the vocabulary costs nothing to speak of


def sample(
    logits_BxV: jax.Array, sampling: Sampling, keys_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row from its own key, and its log-probability in the distribution that is really
    sampled from: int32 [B], float32 [B]."""
    if logits_BxV.shape[-1] < _LARGE:
        return draw(sampling_scores(logits_BxV, sampling), keys_B)
    # Without a filter nothing of the size of the scores is written: a third of the time.
    return jax.lax.cond(
        jnp.any(_filters(sampling) | (sampling.temperature <= 0)),
        lambda logits: draw(sampling_scores(logits, sampling), keys_B),
        lambda logits: draw(_tempered(logits, sampling), keys_B),
        logits_BxV,
    )


def draw(scores_BxV: jax.Array, keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One token a row of softmax(scores) from its own key, and its log-probability."""
    if scores_BxV.shape[-1] >= _LARGE:
        return _by_blocks(scores_BxV, keys_B)
    logprobs_BxV = jax.nn.log_softmax(scores_BxV, axis=-1)
    tokens_B = jax.vmap(jax.random.categorical)(keys_B, logprobs_BxV).astype(jnp.int32)
    return tokens_B, _at(logprobs_BxV, tokens_B)


def _at(x_BxN: jax.Array, index_B: jax.Array) -> jax.Array:
    """x[b, index[b]]. A masked sum and not a gather: it also works on a vocabulary that is sharded."""
    return jnp.where(index_B[:, None] == jnp.arange(x_BxN.shape[-1]), x_BxN, 0.0).sum(axis=-1)


def _by_blocks(scores_BxV: jax.Array, keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One token a row by inversion of the distribution function: first its block of the vocabulary,
    then itself within the block. A random number for each of the two keeps the share of rare tokens,
    which a single float32 would round away. Gumbel noise needs V random numbers a row, which on the
    CPU took a quarter of a decode step with a vocabulary of 49,152."""
    B, V = scores_BxV.shape
    blocks = -(-V // _BLOCK)
    padding = [(0, 0), (0, blocks * _BLOCK - V)]
    scores = jnp.pad(scores_BxV, padding, constant_values=-jnp.inf).reshape(B, blocks, _BLOCK)
    u_Bx2 = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys_B)

    def invert(weights_BxN: jax.Array, u_B: jax.Array) -> jax.Array:
        upto = jnp.cumsum(weights_BxN, axis=-1)
        past = (upto > (u_B * upto[:, -1])[:, None]) & (weights_BxN > 0)
        # Rounding may leave none past a u close to 1.
        return jnp.where(past.any(-1), past.argmax(-1), weights_BxN.argmax(-1))

    highest_B = scores.max(axis=-1).max(axis=-1)
    weights = jnp.exp(scores - highest_B[:, None, None]).sum(axis=-1)
    block_B = invert(weights, u_Bx2[:, 0])
    here = block_B[:, None] == jnp.arange(blocks)
    within_BxK = jnp.where(here[..., None], scores, 0.0).sum(axis=1) - highest_B[:, None]
    place_B = invert(jnp.exp(within_BxK), u_Bx2[:, 1])
    logprob_B = _at(within_BxK, place_B) - jnp.log(weights.sum(axis=-1))
    return (block_B * _BLOCK + place_B).astype(jnp.int32), logprob_B


def top_tokens(
    logits_BxV: jax.Array, tokens_B: jax.Array, n: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the model itself says, at temperature 1 and before any filter: the log-probability of each
    drawn token, float32 [B], and its n likeliest tokens with theirs, int32 [B, n], float32 [B, n]."""
    logprobs_BxV = jax.nn.log_softmax(logits_BxV.astype(jnp.float32), axis=-1)
    best, ids = jax.lax.top_k(logprobs_BxV, n)
    return _at(logprobs_BxV, tokens_B), ids.astype(jnp.int32), best


def token_stats(logits_BxV: jax.Array, sampling: Sampling) -> tuple[jax.Array, jax.Array]:
    """Entropy and certainty of the distribution at the sampling temperature, before any filter, in
    nats: float32 [B] each.

    Certainty is logsumexp(z) − mean(z) = KL(uniform ‖ p) + log V (Kang et al. 2025, arXiv
    2502.18581). Greedy is read as temperature 1.
    """
    logprobs_BxV = jax.nn.log_softmax(_tempered(logits_BxV, sampling), axis=-1)
    entropy_B = -(jnp.exp(logprobs_BxV) * logprobs_BxV).sum(axis=-1)
    return entropy_B, -logprobs_BxV.mean(axis=-1)
