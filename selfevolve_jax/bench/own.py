"""Against itself, and against what the machine can do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import flops, sharding
from selfevolve_jax.bench import memory
from selfevolve_jax.bench.measure import Row, alternate
from selfevolve_jax.bench.workload import Workload
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.update import update_step
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.rollout import decoding
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.rollout.engine import RolloutConfig, Samples, generate
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.state import init_state

# As the engine hands it on: the model's own distribution.
_PLAIN = Sampling(np.float32(1), np.float32(1), np.int32(0), np.float32(0))


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - began


def _rounds(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> dict[str, list[float]]:
    """In turn, after one round that compiles."""
    for warm in (ours, theirs):
        warm()
    return alternate({"ours": ours, "theirs": theirs}, rounds)[0]


def prefill(work: Workload) -> list[Row]:
    """Seconds until the samples of all prompts can decode: one prefill a prompt, and its cache copied
    to G slots. Longer prompts than the rollout's, as of a word problem: 128 tokens."""
    cfg, R, P = work.policy.model, work.sizes.prompts, 128
    constrain = sharding.constrainer(work.mesh)
    params = decoding.cast_once(work.policy.params, cfg.dtype)
    tokens = np.random.default_rng(0).integers(10, cfg.vocab_size, (R, P)).astype(np.int32)
    tokens = sharding.put_batch(tokens, work.mesh)
    key = jax.random.key(0)

    def ready(G: int) -> float:
        S = R * G
        slots = decoding.empty_slots(S, P + 16, cfg, constrain)
        source = np.arange(S, dtype=np.int32) // G
        zeros = np.zeros(S, np.int32)
        arrays = sharding.put_batch((source, zeros, zeros + P, zeros, source, zeros), work.mesh)
        jax.block_until_ready(slots)

        def run():
            buffered = decoding.prefill(params, tokens, None, cfg, constrain)
            return decoding.admit(slots, buffered, *arrays, key)

        return _timed(run)

    G = work.sizes.samples
    found = _rounds(partial(ready, G), partial(ready, 1), work.sizes.rounds)
    what = f"prefill of {R} prompts for G = {G}, {cfg.dtype}"
    row = Row("prefill", what, "G = 1", "s", 1.15, False, found["ours"], found["theirs"])
    return [row]


def long_tail(work: Workload) -> list[Row]:
    """Half of the rollout's prompts, twice its limit, and an eighth of the slots that they would fill:
    our engine, which gives a slot to the next sample as soon as one ends, against batches that wait for
    their longest. Random numbers belong to samples, so both draw the very same tokens."""
    sizes = work.sizes
    work = replace(work, prompts=work.prompts[: sizes.prompts // 2])
    slots = max(len(work.prompts) * sizes.samples // 8, sizes.samples)
    chunk = 8

    def continuous() -> float:
        began = time.perf_counter()
        samples = _continuous(work, slots, chunk)
        return int(samples.lengths_RxG.sum()) / (time.perf_counter() - began)

    def in_batches() -> float:
        began, total = time.perf_counter(), 0
        size = slots // sizes.samples
        for start in range(0, len(work.prompts), size):
            total += _synchronous(work, start, size, chunk)
        return total / (time.perf_counter() - began)

    found = _rounds(continuous, in_batches, sizes.rounds)
    what = f"long-tailed lengths in {slots} slots, {work.dtype}"
    against = "batch-synchronous"
    row = Row("long-tail", what, against, "tokens/s", 1.5, True, found["ours"], found["theirs"])
    return [row]


def _continuous(work: Workload, slots: int, chunk: int) -> Samples:
    return generate(
        work.policy.params,
        work.prompts,
        range(len(work.prompts)),
        work.sizes.samples,
        jax.random.key(3),
        Sampling(),
        max_new_tokens=2 * work.sizes.max_new_tokens,
        stop_tokens=[work.stop],
        cfg=work.policy.model,
        mesh=work.mesh,
        config=RolloutConfig(slots, chunk),
    )


def _synchronous(work: Workload, start: int, size: int, chunk: int) -> int:
    """Useful tokens of one batch whose every slot is held until the longest sample has ended: the
    same prefill and decode steps, without the engine's refilling and compaction."""
    cfg, G, mesh = work.policy.model, work.sizes.samples, work.mesh
    constrain, limit = sharding.constrainer(mesh), 2 * work.sizes.max_new_tokens
    prompts = work.prompts[start : start + size]
    params = work.policy.params
    if decoding.casts(cfg):
        params = decoding.cast_once(params, cfg.dtype)
    P = bucket(max(len(p) for p in work.prompts) - 1)
    S = size * G
    padded = np.zeros((size, P), np.int32)
    for i, prompt in enumerate(prompts):
        padded[i, : len(prompt) - 1] = prompt[:-1]
    buffered = decoding.prefill(params, sharding.put_batch(padded, mesh), None, cfg, constrain)
    row = np.arange(S, dtype=np.int32) // G
    last = np.array([prompts[r][-1] for r in row], np.int32)
    place = np.array([len(prompts[r]) - 1 for r in row], np.int32)
    zeros, index = np.zeros(S, np.int32), np.arange(S, dtype=np.int32) % G
    full = bucket(P + 1 + limit)
    slots = decoding.empty_slots(S, min(bucket(P + chunk), full), cfg, constrain)
    arrays = sharding.put_batch((row, last, place, zeros, row + np.int32(start), index), mesh)
    slots = decoding.admit(slots, buffered, *arrays, jax.random.key(3))
    values = sharding.put_replicated(
        (_PLAIN, np.array([work.stop], np.int32), np.int32(limit)), mesh
    )
    generated, done = zeros, False
    while not done:
        needed = int((place + generated).max()) + 1 + chunk
        if needed > slots.cache.capacity and slots.cache.capacity < full:
            slots = decoding.grow(slots, capacity=min(bucket(needed), full))
        slots, _ = decoding.decode_chunk(
            params, slots, *values, steps=chunk, cfg=cfg, constrain=constrain
        )
        generated, active = sharding.to_host((slots.generated, slots.active))
        done = not active.any()
    return int(generated.sum())


def matmul_flops(dtype: str, size: int = 2048) -> Callable[[], float]:
    """FLOP/s of a square product in `dtype`: what this machine can do at best."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(x))
    return lambda: max(2 * size**3 / _timed(lambda: product(x)) for _ in range(5))


def memory_rate(gib: float = 0.5) -> Callable[[], float]:
    """Bytes/s of reading an array that no cache holds."""
    x = jnp.ones((int(gib * 2**30) // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(x))
    return lambda: max(x.nbytes / _timed(lambda: total(x)) for _ in range(3))


def matmul_parameters(cfg: ModelConfig) -> int:
    """Weights that each token is multiplied with, the head among them and the embedding not."""
    return flops.layer_weights(cfg) + cfg.d_model * cfg.vocab_size


def decode_flops(cfg: ModelConfig, slots: int, seen: int) -> float:
    """Of one token in every slot, each of which attends to `seen` positions."""
    return flops.layers(cfg, slots, slots * seen) + flops.head(cfg, slots)


def decode_bytes(cfg: ModelConfig, slots: int, seen: int) -> float:
    """Read in that step: weights, and keys and values."""
    size = jnp.dtype(cfg.dtype).itemsize
    cache = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * slots * seen
    return float(size * (matmul_parameters(cfg) + cache))


def train_flops(cfg: ModelConfig, rows: int, length: int) -> float:
    """Of a forward and backward pass, 3 times the forward one; attention is causal."""
    tokens, pairs = rows * length, rows * flops.causal_pairs(length)
    return 3 * (flops.layers(cfg, tokens, pairs) + flops.head(cfg, tokens))


def decode_step(work: Workload) -> list[Row]:
    """Seconds of a decode step as the roofline has it, over those it takes."""
    cfg, S = work.policy.model, work.sizes.prompts * work.sizes.samples
    constrain = sharding.constrainer(work.mesh)
    params = decoding.cast_once(work.policy.params, cfg.dtype)
    steps, seen = 8, 72
    capacity = bucket(seen + steps)
    values = sharding.put_replicated(
        (_PLAIN, np.array([-1], np.int32), np.int32(10_000)), work.mesh
    )

    def measured() -> float:
        slots = decoding.empty_slots(S, capacity, cfg, constrain)
        at = jnp.full(S, seen - steps // 2, jnp.int32)
        slots = jax.block_until_ready(replace(slots, active=jnp.ones(S, bool), position=at))
        return (
            _timed(
                lambda: decoding.decode_chunk(
                    params, slots, *values, steps=steps, cfg=cfg, constrain=constrain
                )
            )
            / steps
        )

    what = f"decode step of {S} slots, {cfg.dtype}"
    work_done = decode_flops(cfg, S, seen), decode_bytes(cfg, S, seen)
    return _roofline("decode", what, work, measured, *work_done)


def train_step(work: Workload) -> list[Row]:
    """The same of an update: forward, backward, AdamW. Rows without padding, as packing makes them."""
    cfg, B, T = work.policy.model, work.sizes.step_prompts, 256
    grpo = GRPOConfig()
    tx = make_optimizer(
        OptimizerConfig(learning_rate=1e-6), 10_000, decay_mask(decoder.abstract_params(cfg))
    )
    state = init_state(work.policy.params, cfg, tx, work.mesh)
    tokens = np.random.default_rng(0).integers(10, cfg.vocab_size, (B, T)).astype(np.int32)
    places = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    zeros = np.zeros((B, T), np.int32)
    sequences = np.where(places < 32, -1, np.arange(B, dtype=np.int32)[:, None]).astype(np.int32)
    batch = Batch(
        tokens,
        np.array(places),
        zeros,
        (sequences >= 0).astype(np.int32),
        sequences,
        np.maximum(places - 1, 0),
        np.zeros((B, T), np.float32),
    )
    batch = sharding.put_batch(batch, work.mesh)
    rewards = np.arange(B, dtype=np.float32).reshape(1, B)
    fixed = sharding.put_replicated((rewards, np.ones((1, B), bool)), work.mesh)

    def measured() -> float:
        nonlocal state

        def run():
            return update_step(
                state,
                batch,
                *fixed,
                np.float32(1.0),
                cfg,
                grpo,
                tx,
                T,
                sharding.constrainer(work.mesh),
                None,
            )

        began = time.perf_counter()
        state, _ = jax.block_until_ready(run())
        return time.perf_counter() - began

    what = f"training step of {B} × {T} tokens, {cfg.dtype}"
    return _roofline("train", what, work, measured, train_flops(cfg, B, T), 0.0)


def _roofline(
    name: str,
    what: str,
    work: Workload,
    measured: Callable[[], float],
    operations: float,
    read: float,
) -> list[Row]:
    rate, memory = matmul_flops(work.dtype), memory_rate()
    last: dict[str, float] = {}

    def least() -> float:
        last["matmul GFLOP/s"], last["memory GB/s"] = rate() / 1e9, memory() / 1e9
        return max(operations / last["matmul GFLOP/s"], read / last["memory GB/s"]) / 1e9

    def reached() -> float:
        return 1 / measured()

    def possible() -> float:
        return 1 / least()

    found = _rounds(reached, possible, work.sizes.rounds)
    bound = (
        "matmul" if operations / last["matmul GFLOP/s"] >= read / last["memory GB/s"] else "memory"
    )
    row = Row(
        name,
        what,
        f"the machine's {bound} rate",
        "steps/s",
        0.6,
        True,
        found["ours"],
        found["theirs"],
        notes=last | {"GFLOP a step": operations / 1e9, "GB read a step": read / 1e9},
    )
    return [row]


def logprob_memory(work: Workload) -> list[Row]:
    """Growth of the process's peak resident memory, each in a process of its own: log-probs of 2,048
    tokens over a vocabulary of 151,936, and their gradient."""

    def peak(how: str) -> float:
        command = [sys.executable, "-m", "selfevolve_jax.bench.memory", how]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    row = Row(
        "logprob-memory",
        "peak memory of log-probs and gradient, V = 151,936",
        "unchunked",
        "GiB",
        0.35,
        False,
    )
    if not memory.STATUS.exists():
        return [replace(row, why=f"only Linux tells a program's own peak, in {memory.STATUS}")]
    found, _ = alternate({"ours": lambda: peak("chunked"), "theirs": lambda: peak("whole")}, 1)
    return [replace(row, ours=found["ours"], theirs=found["theirs"])]
