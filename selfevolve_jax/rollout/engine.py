"""Prompts in, samples with log-probabilities out: continuous batching over a fixed set of slots.

Each unique prompt is prefilled once and its cache is copied to the slots of its G samples. Decoding
runs in chunks: a jitted while_loop over donated buffers. Between chunks the host reads the chunk's
tokens, frees the slots that finished and gives them to waiting samples; once nothing waits, the
slots are compacted by halves. Shapes come from a few buckets, so nothing compiles twice.

The whole batch at once is the special case in which every sample has a slot from the start.

A sample's random numbers depend on (key, row id, sample index, token index) alone: it does not
change with the batch it is in, nor with the slot or the moment it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout import decoding
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.rollout.prompt_images import PromptImages
from selfevolve_jax.rollout.sampling import Sampling


@dataclass(frozen=True)
class RolloutConfig:
    """slots: samples decoded together, the memory dial. chunk: tokens between two host reads."""

    slots: int = 512
    chunk: int = 64

    def __post_init__(self) -> None:
        for name in ("slots", "chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"rollout.{name}={getattr(self, name)} must be at least 1.")


@dataclass(frozen=True)
class Samples:
    """G samples for each of R prompts, on the host. A stop token, when one was drawn, is the last
    of the sample's tokens and counts in its length; beyond the length all is 0.

    tokens_RxGxM: int32. logprobs_RxGxM: float32, of the distribution really sampled from.
    lengths_RxG: int32. stopped_RxG: bool, False where the limit cut the sample off.
    entropy_RxGxM, certainty_RxGxM: float32, nats, as in `sampling.token_stats`; only where asked for.
    """

    tokens_RxGxM: np.ndarray
    logprobs_RxGxM: np.ndarray
    lengths_RxG: np.ndarray
    stopped_RxG: np.ndarray
    entropy_RxGxM: np.ndarray | None = None
    certainty_RxGxM: np.ndarray | None = None


def generate(
    params: decoder.Params,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    samples_per_prompt: int,
    key: jax.Array,
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    cfg: ModelConfig,
    mesh: jax.sharding.Mesh,
    config: RolloutConfig,
    images: PromptImages | None = None,
    stats: bool = False,
    room: int = 0,
    on_tokens: Callable[[int, np.ndarray], None] | None = None,
) -> Samples:
    """Samples `samples_per_prompt` continuations of every prompt.

    row_ids key the random numbers together with the sample's index; an id that comes twice in one
    call gets fresh numbers the second time. images: what the prompts show. stats: also record each
    token's entropy and certainty. room: as many slots at least, as far as the config has them, so that
    calls of many sizes share what is compiled. on_tokens: called after each chunk with (row · G +
    sample, its new tokens). The arguments must be the same on every process.
    """
    R, G = len(prompts), samples_per_prompt
    if not R or not all(len(p) for p in prompts):
        raise UserError(f"Nothing to generate from: {R} prompts, shortest of 0 tokens.")
    constrain, ways = sharding.constrainer(mesh), sharding.batch_ways(mesh)
    if decoding.casts(cfg):
        params = decoding.cast_once(params, cfg.dtype)

    def rounded(n: int) -> int:
        return -(-n // ways) * ways

    sample_base = _occurrences(row_ids, G)
    S = rounded(min(config.slots, max(room, bucket(R * G, 8))))
    buffer_rows = rounded(bucket(-(-S // G), 1))
    # The last prompt token is not prefilled: the first decode step feeds it.
    P = bucket(max(max(len(p) for p in prompts) - 1, 1))
    steps = min(config.chunk, bucket(max_new_tokens, 8))
    full = P + 1 + max_new_tokens
    slots = decoding.empty_slots(S, min(bucket(P + steps), bucket(full)), cfg, constrain)

    fields = decoding.DRAWN_STATS if stats else decoding.DRAWN
    kept = {name: np.zeros((R * G, max_new_tokens), dtype) for name, dtype in fields.items()}
    tokens = kept["tokens_RxGxM"]
    lengths = np.zeros(R * G, np.int32)
    holds = np.full(S, -1)  # the sample (row * G + g) in each slot, -1 when free
    positions = np.zeros(S, np.int64)
    waiting, buffer_start, buffered = 0, 0, None  # next sample; first row and cache of the buffer
    # One dtype each, or a temperature of 1 would compile again what a temperature of 1.0 did.
    sampling = Sampling(
        np.float32(sampling.temperature),
        np.float32(sampling.top_p),
        np.int32(sampling.top_k),
        np.float32(sampling.min_p),
    )
    values = sharding.put_replicated(
        (sampling, np.asarray(stop_tokens, np.int32), np.int32(max_new_tokens)), mesh
    )

    while waiting < R * G or (holds >= 0).any():
        while waiting < R * G and (free := np.flatnonzero(holds < 0)).size:
            row = waiting // G
            if buffered is None or row >= buffer_start + buffer_rows:
                buffer_start = row
                padded = np.zeros((buffer_rows, P), np.int32)
                for i, prompt in enumerate(prompts[row : row + buffer_rows]):
                    padded[i, : len(prompt) - 1] = prompt[:-1]
                seen = images and images.rows(row, buffer_rows, P, mesh)
                padded = sharding.put_batch(padded, mesh)
                buffered = decoding.prefill(params, padded, seen, cfg, constrain)
            end = min(R * G, (buffer_start + buffer_rows) * G, waiting + free.size)
            given = range(waiting, end)
            into = free[: len(given)]
            source, last, place, shift, row_id, index = np.zeros((6, S), np.int32)
            source[:] = -1
            source[into] = [i // G - buffer_start for i in given]
            last[into] = [prompts[i // G][-1] for i in given]
            place[into] = [len(prompts[i // G]) - 1 for i in given]
            shift[into] = [images.shifts[i // G] if images else 0 for i in given]
            row_id[into] = [row_ids[i // G] for i in given]
            index[into] = [sample_base[i // G] + i % G for i in given]
            arrays = sharding.put_batch((source, last, place, shift, row_id, index), mesh)
            slots = decoding.admit(slots, buffered, *arrays, key)
            holds[into], positions[into], waiting = given, place[into], end

        needed = int(positions[holds >= 0].max()) + 1 + steps
        if needed > slots.cache.capacity and slots.cache.capacity < bucket(full):
            slots = decoding.grow(slots, capacity=min(bucket(needed), bucket(full)))
        slots, drawn = decoding.decode_chunk(
            params, slots, *values, steps=steps, cfg=cfg, constrain=constrain, stats=stats
        )
        drawn, generated, active = sharding.to_host((drawn, slots.generated, slots.active))
        for s in np.flatnonzero(holds >= 0):
            i, new = holds[s], generated[s] - lengths[holds[s]]
            for array, chunk in zip(kept.values(), drawn, strict=True):
                array[i, lengths[i] : lengths[i] + new] = chunk[s, :new]
            if on_tokens is not None and new:
                on_tokens(int(i), tokens[i, lengths[i] : lengths[i] + new])
            lengths[i] += new
            positions[s] += new
            if not active[s]:
                holds[s] = -1
        half = rounded(-(-len(holds) // 2))
        if waiting == R * G and 0 < (holds >= 0).sum() <= half < len(holds):
            keep = np.argsort(holds < 0, kind="stable")[:half]
            slots = decoding.compact(slots, sharding.put_batch(keep.astype(np.int32), mesh))
            holds, positions = holds[keep], positions[keep]

    last_tokens = tokens[np.arange(R * G), np.maximum(lengths - 1, 0)]
    return Samples(
        **{name: array.reshape(R, G, -1) for name, array in kept.items()},
        lengths_RxG=lengths.reshape(R, G),
        stopped_RxG=np.isin(last_tokens, np.asarray(stop_tokens)).reshape(R, G),
    )


def _occurrences(row_ids: Sequence[int], samples_per_prompt: int) -> list[int]:
    """The first sample index of each row: 0, or past those that an equal id took before it."""
    seen: Counter[int] = Counter()
    bases = []
    for row_id in row_ids:
        bases.append(seen[row_id] * samples_per_prompt)
        seen[row_id] += 1
    return bases
