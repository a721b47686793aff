"""Log-probabilities and entropies of given tokens, without a [B, T, V] array."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from models import decoder, vision
from models.config import ModelConfig
from models.shared import Constrain, unconstrained
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.rollout.sampling import without_image_token


def token_logprobs(
    params: decoder.Params,
    batch: Batch,
    temperature: jax.Array,
    cfg: ModelConfig,
    chunk: int,
    constrain: Constrain = unconstrained,
) -> tuple[jax.Array, jax.Array]:
    """log p(token | before) and the entropy of that distribution in nats, both float32 [B, T].

    Aligned with the token that was predicted. Scores are divided by the sampling temperature first,
    or log-probs would not be those of what was sampled (0, greedy, is read as 1). Only `chunk` tokens'
    scores exist at a time, and the backward pass makes them again. 0 outside the response.
    """
    B, T = batch.tokens_BxT.shape
    images = None
    if batch.image_index_BxT is not None:
        features = batch.features_BxUxD
        if batch.pixels is not None:
            assert params.vision is not None
            features = vision.encode(params.vision, batch.pixels, cfg, constrain)
        images = decoder.ImageTokens(features, batch.image_index_BxT)
    hidden_BxTxD = decoder.forward(
        params,
        batch.tokens_BxT,
        batch.positions,
        batch.segment_ids_BxT,
        batch.branch_ids_BxT,
        cfg,
        constrain,
        images,
    )
    source, target = batch.source_BxT, batch.tokens_BxT
    if batch.scored_BxR is not None:
        at = jnp.maximum(batch.scored_BxR, 0)
        source, target = (jnp.take_along_axis(x, at, axis=1) for x in (source, target))
    # The first token of a sample is predicted by the last one of the prompt that it may share.
    hidden = jnp.take_along_axis(hidden_BxTxD, source[..., None], axis=1)
    # Gathered over d_model once: of a matrix split both ways XLA gathers, and sums the gradient of, the
    # whole for every piece, which at T = 4096 is most of what a step sends.
    if cfg.tie_embeddings:
        params = replace(params, embed=constrain(params.embed, ("vocab", None)))
    else:
        params = replace(params, head=constrain(params.head, (None, "vocab")))
    scale = jnp.where(temperature > 0, temperature, 1.0)
    R = target.shape[1]
    size = min(chunk, R)
    pieces = -(-R // size)
    pad = pieces * size - R

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, pieces, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def score(_, piece):
        hidden, target = piece
        logits = constrain(decoder.logits(params, hidden, cfg), ("batch", "length", "vocab"))
        logits = without_image_token(logits, cfg) / scale
        # A masked sum and not take_along_axis: it also works where the vocabulary is sharded.
        chosen = target[..., None] == jnp.arange(logits.shape[-1])
        logit = jnp.where(chosen, logits, 0.0).sum(-1)
        norm, mean = _norm_and_mean(logits, _parts(logits.shape[-1], constrain.platform))
        return None, (logit - norm, norm - mean)

    _, scored = jax.lax.scan(score, None, (split(hidden), split(target)))

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1).reshape(B, pieces * size)[:, :R]
        if batch.scored_BxR is not None:
            at = jnp.where(batch.scored_BxR >= 0, batch.scored_BxR, T)  # T is nowhere
            x = jnp.zeros((B, T), x.dtype).at[jnp.arange(B)[:, None], at].set(x, mode="drop")
        return jnp.where(batch.sequence_ids_BxT >= 0, x, 0.0)

    return join(scored[0]), join(scored[1])


def _parts(vocab: int, platform: str) -> int:
    """In how many equal parts the vocabulary is summed. XLA's CPU backend sums a long row by one core
    and one exponential at a time, and its parts by all cores and eight at a time (512 rows of 49,152:
    87 ms whole, 10 ms in parts)."""
    return 16 if platform == "cpu" and vocab >= 4096 and vocab % 16 == 0 else 1


def _norm_and_mean(logits: jax.Array, parts: int) -> tuple[jax.Array, jax.Array]:
    """log Σ exp(z) over the last axis, and the mean of z under softmax(z); the same for any `parts`."""
    z = logits.reshape(*logits.shape[:-1], parts, -1)
    part = jax.nn.logsumexp(z, axis=-1)
    norm = jax.nn.logsumexp(part, axis=-1)
    mean = (jnp.exp(z - part[..., None]) * z).sum(-1)
    return norm, (jnp.exp(part - norm[..., None]) * mean).sum(-1)
