"""Against other projects: rollout, and the whole GRPO step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import decoder
from selfevolve_jax import evaluate, sharding
from selfevolve_jax.bench import peers
from selfevolve_jax.bench.measure import Failed, Row, alternate
from selfevolve_jax.bench.workload import Workload
from selfevolve_jax.grpo.batch import build_batch
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.update import update_step
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.rollout.engine import RolloutConfig, Samples, generate
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.state import init_state

THREADS = 2
RATE = 1e-6
PEERS = {"transformers generate": peers.TORCH, "google-tunix sampler": peers.TUNIX}
TRAINERS = {"TRL": peers.TORCH, "google-tunix": peers.TUNIX}
# Mean absolute difference of log-probs that rounding explains, by dtype of the products.
AGREES = {"float32": 1e-3, "bfloat16": 0.2}
_ENOUGH_S = 420.0  # no further round begins after so long
_CONFIG = RolloutConfig(slots=512, chunk=16)


def sample(work: Workload, prompts: list[list[int]], seed: int, temperature=1.0) -> Samples:
    """Our engine on these prompts, as the trainer calls it."""
    sizes = work.sizes
    return generate(
        work.policy.params,
        prompts,
        range(len(prompts)),
        sizes.samples,
        jax.random.key(seed),
        Sampling(temperature=temperature),
        max_new_tokens=sizes.max_new_tokens,
        stop_tokens=[work.stop],
        cfg=work.policy.model,
        mesh=work.mesh,
        config=_CONFIG,
    )


@contextmanager
def _workers(
    work: Workload, named: dict[str, peers.Peer]
) -> Iterator[tuple[dict[str, peers.Worker], dict[str, str], dict[str, Any]]]:
    """A process for each peer that can be had and computes what we compute: (workers, why not, what
    was found of each)."""
    started, why, notes = {}, {}, {}
    try:
        for name, peer in named.items():
            try:
                worker = peers.start(peer, work.say, THREADS)
                started[name] = worker
                told = worker.ask("load", folder=work.folder, dtype=work.dtype, threads=THREADS)
                notes[name] = told["versions"] | {"log-prob gap": _gap(work, worker)}
            except Failed as error:
                why[name] = str(error)
                if name in started:
                    started.pop(name).close()
        yield started, why, notes
    finally:
        for worker in started.values():
            worker.close()


def _gap(work: Workload, worker: peers.Worker) -> float:
    """Mean absolute difference between the peer's log-probs and ours on answers to three prompts;
    Failed where rounding does not explain it."""
    prompts = work.prompts[:3]
    drawn = sample(work, prompts, seed=7, temperature=0.0)
    answers = [
        drawn.tokens_RxGxM[i, 0, : drawn.lengths_RxG[i, 0]].tolist() for i in range(len(prompts))
    ]
    theirs = worker.ask("logprobs", prompts=prompts, answers=answers)["logprobs"]
    gaps = []
    for prompt, answer, found in zip(prompts, answers, theirs, strict=True):
        tokens = jnp.asarray([prompt + answer])
        positions = jnp.arange(tokens.shape[1])[None]
        zeros = jnp.zeros_like(tokens)
        hidden = decoder.forward(
            work.policy.params, tokens, positions, zeros, zeros, work.policy.model
        )
        scores = decoder.logits(work.policy.params, hidden[0], work.policy.model)
        logp = jax.nn.log_softmax(scores)[len(prompt) - 1 : -1]
        gaps += (np.asarray(logp)[np.arange(len(answer)), answer] - found).tolist()
    gap = float(np.abs(gaps).mean())
    if gap > AGREES[work.dtype]:
        raise Failed(
            f"its log-probs differ from ours by {gap:.3f} nats a token on the same weights"
        )
    return gap


def rollout(work: Workload) -> list[Row]:
    """Useful tokens a second: a sample's tokens up to and including its stop token. All draw from the
    model's own distribution at temperature 1 and stop at the same token or limit, so that lengths are
    ragged in the same way for all."""
    sizes = work.sizes
    their_seeds = itertools.count()
    per_sample: dict[str, list[float]] = {}

    def noted(name: str, tokens: int, seconds: float, n: int) -> float:
        per_sample.setdefault(name, []).append(tokens / n)
        return tokens / seconds

    def ours() -> float:
        began = time.perf_counter()
        tokens = int(sample(work, work.prompts, seed=0).lengths_RxG.sum())
        return noted("ours", tokens, time.perf_counter() - began, len(work.prompts) * sizes.samples)

    def theirs(name: str, worker: peers.Worker, prompts: list[list[int]]) -> float:
        answer = worker.ask(
            "rollout",
            prompts=prompts,
            samples=sizes.samples,
            max_new_tokens=sizes.max_new_tokens,
            stop=work.stop,
            batch=len(prompts),
            seed=next(their_seeds),
        )
        return noted(name, answer["tokens"], answer["seconds"], answer["n"])

    with _workers(work, PEERS) as (workers, why, notes):
        turns: dict[str, Callable[[], float]] = {"ours": ours}
        turns |= {
            name: partial(theirs, name, worker, work.prompts) for name, worker in workers.items()
        }
        small = {
            name: partial(theirs, name, worker, work.prompts[:2])
            for name, worker in workers.items()
            if not PEERS[name].compiles
        }
        found, failed = _warm_then(turns | small, turns, work)
        notes["tokens a sample"] = {k: float(np.mean(v)) for k, v in per_sample.items() if v}
    return _rows(
        "rollout",
        _rollout_words(work),
        "tokens/s",
        {"transformers generate": 2.0, "google-tunix sampler": 2.0},
        found,
        why | failed,
        notes,
    )


def _rollout_words(work: Workload) -> str:
    s = work.sizes
    return f"rollout, {s.prompts} prompts × {s.samples} samples, {work.dtype}"


def _warm_then(
    warm: dict[str, Callable[[], float]], turns: dict[str, Callable[[], float]], work: Workload
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Everyone once, to compile and to touch its memory, then the rounds that count. Ours draws with
    one seed in all of them, as a round's lengths decide which shapes it needs."""
    _, failed = alternate(warm, 1)
    turns = {name: turn for name, turn in turns.items() if name not in failed}
    work.say(f"warm: {', '.join(turns)}")
    found, later = alternate(turns, work.sizes.rounds, seconds=_ENOUGH_S)
    return found, failed | later


def _rows(name, what, unit, bars, found, why, notes) -> list[Row]:
    if "ours" in why:
        raise RuntimeError(why["ours"])
    return [
        Row(
            name,
            what,
            peer,
            unit,
            bar,
            True,
            found["ours"],
            found.get(peer, ()),
            why.get(peer),
            notes.get(peer, {}) | {k: v for k, v in notes.items() if k not in bars},
        )
        for peer, bar in bars.items()
    ]


def grpo_step(work: Workload) -> list[Row]:
    """Useful tokens a second through a whole step: sample, reward, update, on the same prompts."""
    sizes, model = work.sizes, work.policy.model
    texts, prompts = work.texts[: sizes.step_prompts], work.prompts[: sizes.step_prompts]
    grpo = GRPOConfig(advantage="grpo", dual_clip=None, accumulate=sizes.pieces)
    optimizer = OptimizerConfig(learning_rate=RATE, weight_decay=0.0, clip_norm=1.0)
    tx = make_optimizer(optimizer, 10_000, decay_mask(decoder.abstract_params(model)))
    state = init_state(work.policy.params, model, tx, work.mesh)
    constrain = sharding.constrainer(work.mesh)

    def ours() -> float:
        nonlocal state
        began = time.perf_counter()
        samples = generate(
            state.params,
            prompts,
            range(len(prompts)),
            sizes.samples,
            jax.random.key(0),
            Sampling(),
            max_new_tokens=sizes.max_new_tokens,
            stop_tokens=[work.stop],
            cfg=model,
            mesh=work.mesh,
            config=_CONFIG,
        )
        decoded = evaluate.decode(work.policy.tokenizer, samples)
        rewards = np.array([[_digits(t) for t in row] for row in decoded], np.float32)
        batch = build_batch(
            prompts,
            samples,
            row_multiple=sizes.pieces,
            samples_per_segment=sizes.samples,
            pack=True,
        )
        state, metrics = update_step(
            state,
            sharding.put_batch(batch, work.mesh),
            *sharding.put_replicated((rewards, np.ones_like(rewards, bool)), work.mesh),
            np.float32(1.0),
            model,
            grpo,
            tx,
            sizes.max_new_tokens,
            constrain,
            None,
        )
        jax.block_until_ready((state, metrics))
        return int(samples.lengths_RxG.sum()) / (time.perf_counter() - began)

    def theirs(worker: peers.Worker) -> float:
        answer = worker.ask("step")
        return answer["tokens"] / answer["seconds"]

    with _workers(work, TRAINERS) as (workers, why, notes):
        turns: dict[str, Callable[[], float]] = {"ours": ours}
        for name, worker in list(workers.items()):
            try:
                told = worker.ask(
                    "grpo",
                    texts=texts,
                    samples=sizes.samples,
                    max_new_tokens=sizes.max_new_tokens,
                    rate=RATE,
                    pieces=sizes.pieces,
                )
                notes[name] |= told["versions"]
                turns[name] = partial(theirs, worker)
            except Failed as error:
                why[name] = str(error)
        found, failed = _warm_then(turns, turns, work)
    what = f"GRPO step, {sizes.step_prompts} prompts × {sizes.samples} samples, {work.dtype}"
    bars = {"TRL": 1.5, "google-tunix": 1.3}
    return _rows("grpo", what, "tokens/s", bars, found, why | failed, notes)


def _digits(text: str) -> float:
    """The workers' reward."""
    return sum(c.isdigit() for c in text) / max(len(text), 1)
