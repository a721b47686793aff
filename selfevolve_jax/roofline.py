"""What a step's programs must do at the least, from sizes alone, and how long a chip needs for it.

A program takes as long as the slowest of its three parts, the other two hidden behind it: products at
the chip's peak rate, bytes through its memory, bytes over its links. So a time is a lower bound, and
the utilisation that follows an upper one.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from models import decoder
from models.params import count
from selfevolve_jax import aot, flops
from selfevolve_jax.aot import Step
from selfevolve_jax.chips import Chip, link_rate
from selfevolve_jax.rollout.decoding import casts
from selfevolve_jax.state import in_float32
from selfevolve_jax.trainable import split


@dataclass(frozen=True)
class Work:
    """Of all calls of a program in a step. flops: that run, on all devices, those that remat runs again
    among them. model_flops: that the method asks for: each real token once forward, and twice backward
    in the update; keys of one's own past alone. memory: bytes read and written on one device. sent:
    bytes over its links, by analysis (the compiled program may send others)."""

    flops: float
    model_flops: float
    memory: float
    sent: float


@dataclass(frozen=True)
class Times:
    """Seconds a step."""

    compute: float
    memory: float
    links: float

    @property
    def bound(self) -> float:
        return max(self.compute, self.memory, self.links)


def times(work: Work, chip: Chip, devices: int, sent: float | None = None) -> Times:
    """sent: what a compiled program sends, in place of the analysis."""
    return Times(
        work.flops / devices / chip.flops,
        work.memory / chip.bandwidth,
        (work.sent if sent is None else sent) / link_rate(chip, devices),
    )


def works(step: Step) -> dict[str, Work]:
    """By the names of `aot.programs`. Every sample has the longest prompt and runs to the limit."""
    c, cfg, mesh = step.trainer, step.model, step.mesh
    size = jnp.dtype(cfg.dtype).itemsize
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    specs = decoder.abstract_params(cfg)
    n, seen = count(specs), count(specs.vision) if specs.vision is not None else 0
    # All of the weights in the dtype of products, as each device gathers its part of them.
    whole = n * size / tensor
    tower = seen * size / tensor
    gathered = whole - tower
    spread = (fsdp - 1) / fsdp
    halves = 2 * (tensor - 1) / tensor  # of an all-reduced array, what a ring sends

    def activations(tokens: float) -> float:
        """Bytes written and read by one pass over `tokens` a device."""
        return 2 * size * tokens * cfg.n_layers * (4 * cfg.d_model + flops.width(cfg) / tensor)

    def reduced(tokens: float) -> float:
        """Bytes that one pass over `tokens` a device sends to sum what tensor parallelism split."""
        return halves * 2 * cfg.n_layers * tokens * cfg.d_model * size

    made: dict[str, Work] = {}
    seen_once = 0.0
    if step.patches and cfg.vision is not None:
        seen_once = flops.tower(cfg.vision, cfg.d_model, step.patches, 1)
        images = step.rounded(c.prompts_per_step)
        work = seen_once * images
        made["encode"] = Work(work, work, tower, tower * spread)

    # The sampler. A prompt is prefilled once, whatever the number of its samples.
    R, P, M = step.buffer_rows * step.refills, step.prefilled, c.max_new_tokens
    per_token = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * size  # keys and values
    here = R * P / step.ways
    made["prefill"] = Work(
        flops.layers(cfg, R * P, R * P * P),
        flops.layers(cfg, c.prompts_per_step * step.prompt, 0)
        + c.prompts_per_step * flops.attention(cfg, flops.causal_pairs(step.prompt)),
        step.refills * gathered * (1 + spread) + activations(here),
        step.refills * gathered * spread + reduced(here),
    )
    copied = step.slots * P * per_token / step.ways / tensor
    made["admit"] = Work(0, 0, 3 * step.refills * copied, step.refills * copied)
    cached = step.slots * per_token / step.ways / tensor
    if len(step.capacities) > 1:
        moved = sum(a + b for a, b in zip(step.capacities, step.capacities[1:], strict=False))
        made["grow"] = Work(0, 0, cached * moved, 0)
    tokens = step.refills * -(-M // step.chunk) * step.chunk
    here = tokens * step.slots / step.ways
    made["decode"] = Work(
        flops.layers(cfg, tokens * step.slots, tokens * step.slots * step.capacity)
        + flops.head(cfg, tokens * step.slots),
        flops.layers(cfg, step.samples * M, step.samples * M * (step.prompt + M / 2))
        + flops.head(cfg, step.samples * M),
        # Gathered weights are written, then read.
        tokens * (gathered * (1 + spread) + cached * step.capacity),
        tokens * gathered * spread + reduced(here),
    )

    # The update.
    grpo, T = c.grpo, step.length
    pieces = grpo.accumulate * grpo.minibatches
    real = step.prompt + c.shared_prompt * M
    rows = step.samples / c.shared_prompt
    pairs = flops.causal_pairs(step.prompt) * rows
    pairs += step.samples * (flops.causal_pairs(M) + M * step.prompt)
    useful = flops.layers(cfg, rows * real, pairs) + flops.head(cfg, step.samples * M)
    # Flash attention leaves out the keys that come after a query; the others mask them.
    met = flops.causal_pairs(T) if step.attention == "flash" else T * T
    run = flops.layers(cfg, step.rows * T, step.rows * met)
    scores = flops.head(cfg, step.rows * T)
    shown = seen_once * step.rows if step.tower_trained else 0.0
    shown_once = seen_once * c.prompts_per_step if step.tower_trained else 0.0
    here = step.rows * T / step.ways
    weights = gathered + (tower if step.tower_trained else 0)
    if n_scored := step.scorings:
        made["score"] = Work(
            n_scored * (run + scores + shown),
            n_scored * (useful + shown_once),
            n_scored * (pieces * weights * (1 + spread) + activations(here)),
            n_scored * (pieces * weights * spread + reduced(here)),
        )
    again = {"none": 0.0, "dots": flops.attention(cfg, step.rows * met), "full": run + shown}
    passes = 3 if cfg.remat == "full" else 2
    mine = count(split(specs, step.trainable)[0])
    backward = 1 + mine / n  # frozen weights pass gradients on, and have none of their own
    shards = fsdp * tensor
    # Masters and two moments are read and written; the sum of gradients, with every piece.
    kept = mine * jnp.dtype(cfg.param_dtype).itemsize / shards
    optimiser = grpo.minibatches * 6 * kept + 2 * pieces * 4 * mine / shards
    made["update"] = Work(
        (1 + backward) * (run + shown) + again[cfg.remat] + (2 + backward) * scores,
        (1 + backward) * (useful + shown_once),
        optimiser + pieces * passes * weights * (1 + spread) + (passes + 1) * activations(here),
        pieces * weights * spread * (passes + mine / n) + passes * reduced(here),
    )
    return made


@dataclass(frozen=True)
class Held:
    """Bytes a device, by analysis: what training and sampling hold at their fullest."""

    parameters: int  # masters, and the weights that the arm began with
    optimiser: int
    gradients: int
    cast: int  # the sampler's copy in the dtype of products
    cache: int  # slots at full capacity, and prompts that wait
    activations: int  # of one piece of the update, by remat

    @property
    def update(self) -> int:
        return self.parameters + self.optimiser + self.gradients + self.activations

    @property
    def sampling(self) -> int:
        return self.parameters + self.optimiser + self.cast + self.cache


def held(step: Step) -> Held:
    """Exact but for the activations: what autodiff keeps of each layer, and the larger of what one
    layer and one piece of scores hold while they are computed."""
    c, cfg, mesh = step.trainer, step.model, step.mesh
    size, tensor = jnp.dtype(cfg.dtype).itemsize, mesh.shape["tensor"]
    state = aot.abstract_training_state(step)
    cast = aot.sampling_params(step, state.params)
    slots, buffer = aot.abstract_slots(step, step.capacity), aot.abstract_buffer(step)
    parameters = aot.device_bytes(state.params)
    mine = split(state.params, step.trainable)[0]
    pieces = c.grpo.accumulate * c.grpo.minibatches
    rows, T = step.rows // step.ways // pieces, step.length
    wide = flops.width(cfg) / tensor
    kept = {"full": cfg.d_model, "dots": 3 * cfg.d_model + wide, "none": 8 * cfg.d_model + 2 * wide}
    # Plain attention's scores, in float32, and their softmax.
    plain = step.attention == "plain"
    squares = rows * T * T * cfg.n_heads / tensor * (4 + size) if plain else 0.0
    layer = rows * T * (4 * cfg.d_model + 2 * wide) * size + squares
    scores = 3 * rows * min(c.grpo.logprob_chunk, T) * cfg.vocab_size / tensor * 4
    saved = rows * T * cfg.n_layers * kept[cfg.remat] * size
    saved += squares * cfg.n_layers if cfg.remat == "none" else 0
    gathered = cfg.d_model * wide * size  # one layer's weights at a time
    return Held(
        2 * parameters,
        aot.device_bytes(state) - parameters,
        aot.device_bytes(jax.tree.map(in_float32, mine)),
        aot.device_bytes(cast) if casts(cfg) else 0,
        aot.device_bytes((slots.cache, buffer)),
        round(saved + max(layer, scores) + 2 * gathered),
    )
