"""One thread owns the device and draws for everybody who waits, a chunk of tokens at a time.

Between two chunks it lets go of samples that ended or that nobody wants any more, and takes in those
that wait: a request joins what is running after at most one chunk and the prefill of those before it.
Slots and cache are as many and as large as what is live needs, from few buckets.
"""

from __future__ import annotations

import functools
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from models import decoder
from models.config import ModelConfig
from models.decoder import Cache
from models.shared import Constrain
from selfevolve_jax import compiles, sharding
from selfevolve_jax.rollout import decoding
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.rollout.decoding import Slots
from selfevolve_jax.rollout.sampling import Sampling

# Tokens between two looks at what came and went.
CHUNK = 8
# Tokens of a prompt that are read at a time: bounds the memory of attention's scores.
PIECE = 256
# The smallest cache.
SMALLEST = 64
# Tokens whose log-probabilities are told with each drawn one, where a request asks for any.
TOP = 20


@dataclass(frozen=True)
class Drawn:
    """New tokens of one sample. ended: by a stop token, which is then the last; by the limit; or "".

    logprobs [n], top_tokens and top_logprobs [n, TOP]: the model's own, where the job asked for them.
    """

    tokens: list[int]
    ended: Literal["", "stop", "length"] = ""
    logprobs: np.ndarray | None = None
    top_tokens: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None


@dataclass(eq=False)
class Job:
    """n samples of one prompt. seed: 32 bits; sample i is what `rollout.engine.generate` draws with
    jax.random.key(seed) for row 0, sample first + i.

    tell: called in the device's thread with (i, what is new or what went wrong); after a sample ended
    or failed never again. drop(i) may be called from anywhere: nobody waits for that sample any more.
    """

    prompt: Sequence[int]
    n: int
    sampling: Sampling
    seed: int
    max_new_tokens: int
    stop_tokens: Sequence[int]
    tell: Callable[[int, Drawn | Exception], None]
    first: int = 0
    logprobs: bool = False
    begun: int = 0  # samples that were given a slot, or dropped before
    dropped: set[int] = field(default_factory=set)

    def drop(self, i: int) -> None:
        self.dropped.add(i)


@dataclass
class _Held:
    """What is in a slot. position: of the token that is fed next."""

    job: Job
    i: int
    position: int
    generated: int = 0
    ended: bool = False


@functools.partial(jax.jit, static_argnames=("cfg", "constrain"), donate_argnames="cache")
def _prefill_piece(
    params: decoder.Params, tokens_RxT, start, cache: Cache, cfg: ModelConfig, constrain: Constrain
) -> Cache:
    """The cache with the tokens at positions start, start + 1, … written; beyond its end nothing is."""
    R, T = tokens_RxT.shape
    positions = start + jnp.broadcast_to(jnp.arange(T), (R, T))
    return decoder.forward_cached(params, tokens_RxT, positions, cache, cfg, constrain)[1]


@functools.partial(jax.jit, static_argnames=("rows", "capacity", "cfg", "constrain"))
def _empty_cache(rows: int, capacity: int, cfg: ModelConfig, constrain: Constrain) -> Cache:
    cache = decoder.empty_cache(cfg, rows, capacity)
    return Cache(*(constrain(x, decoder.CACHE_AXES) for x in (cache.k, cache.v)))


_keys = jax.jit(jax.vmap(jax.random.key))


class Batcher:
    """Starts the device's thread. slots: samples decoded together at most, rounded up to what divides
    over the mesh. context: tokens of a prompt and its answer together; a job must not ask for more.
    most_stops: the largest number of stop tokens of a job.
    """

    def __init__(
        self,
        params: decoder.Params,
        cfg: ModelConfig,
        mesh: jax.sharding.Mesh,
        *,
        slots: int,
        context: int,
        most_stops: int,
    ) -> None:
        if cfg.dtype != cfg.param_dtype or cfg.lora.rank:
            params = decoding.cast_once(params, cfg.dtype)
        self._params, self._cfg, self._mesh = params, cfg, mesh
        self._constrain, self._ways = sharding.constrainer(mesh), sharding.batch_ways(mesh)
        self._most = -(-slots // self._ways) * self._ways
        self._context, self._most_stops = context, most_stops
        self._top = min(TOP, cfg.vocab_size)
        self._wake = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._held: list[_Held | None] = []
        self._slots: Slots | None = None
        self._compiled: Callable[[], int] = lambda: 0
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """The job's samples are told as they come. After `stop` they all fail at once."""
        assert len(job.prompt) + job.max_new_tokens <= self._context and job.prompt
        assert len(job.stop_tokens) <= self._most_stops
        with self._wake:
            if not self._stopping:
                self._waiting.append(job)
                self._wake.notify()
                return
        _fail(job, range(job.n), Stopped())

    def stop(self) -> None:
        """Ends after the chunk that is running; what is not done by then fails with `Stopped`."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def counts(self) -> dict[str, int]:
        """Samples in slots, samples that wait for one, and compilations since the start."""
        with self._wake:
            waiting = sum(job.n - job.begun for job in self._waiting)
        running = sum(held is not None for held in list(self._held))
        return {"running": running, "waiting": waiting, "compilations": self._compiled()}

    def _run(self) -> None:
        with compiles.count() as self._compiled:
            while True:
                with self._wake:
                    while not (self._waiting or any(self._held) or self._stopping):
                        self._wake.wait()
                    if self._stopping:
                        break
                picked: list[_Held] = []
                try:
                    self._forget_dropped()
                    picked += self._pick()
                    self._admit(picked)
                    if any(self._held):
                        self._decode()
                # Whatever it is (memory that ran out, as a rule), who waits is told, and the next
                # request finds a server that works.
                except Exception as error:
                    traceback.print_exc(file=sys.stderr)
                    lost = {id(h): h for h in (*self._held, *picked) if h and not h.ended}
                    self._held, self._slots = [], None
                    for one in lost.values():
                        _fail(one.job, [one.i], error)
        with self._wake:
            waiting, self._waiting = list(self._waiting), deque()
        for one in filter(None, self._held):
            _fail(one.job, [one.i], Stopped())
        self._held, self._slots = [], None
        for job in waiting:
            _fail(job, range(job.begun, job.n), Stopped())

    def _forget_dropped(self) -> None:
        self._held = [h if h and h.i not in h.job.dropped else None for h in self._held]

    def _pick(self) -> list[_Held]:
        """The next samples of those that wait, as many as there can be slots for."""
        free = self._most - sum(held is not None for held in self._held)
        picked: list[_Held] = []
        with self._wake:
            while self._waiting and free > len(picked):
                job = self._waiting[0]
                if job.begun not in job.dropped:
                    picked.append(_Held(job, job.begun, len(job.prompt) - 1))
                job.begun += 1
                if job.begun == job.n:
                    self._waiting.popleft()
        return picked

    def _admit(self, picked: list[_Held]) -> None:
        """Puts the samples into slots, after the prefill of their prompts."""
        self._fit(picked)
        for job in dict.fromkeys(held.job for held in picked):
            mine = [held for held in picked if held.job is job]
            cache = self._prefill(job.prompt)
            S = len(self._held)
            into = [s for s in range(S) if self._held[s] is None][: len(mine)]
            source, last, place, sample = np.zeros((4, S), np.int32)
            source[:] = -1
            source[into], last[into] = 0, job.prompt[-1]
            place[into] = [held.position for held in mine]
            sample[into] = [job.first + held.i for held in mine]
            none, seeds = np.zeros(S, np.int32), np.full(S, job.seed, np.uint32)
            put = functools.partial(sharding.put_batch, mesh=self._mesh)
            arrays = put((source, last, place, none, none, sample))
            assert self._slots is not None
            self._slots = decoding.admit(self._slots, cache, *arrays, _keys(put(seeds)))
            for s, held in zip(into, mine, strict=True):
                self._held[s] = held

    def _fit(self, picked: Sequence[_Held]) -> None:
        """As many slots, and as large a cache, as what is held and what comes need."""
        live = [s for s, held in enumerate(self._held) if held is not None]
        everyone = [*filter(None, self._held), *picked]
        if not everyone:
            self._held, self._slots = [], None
            return
        count = self._ways
        while count < min(len(everyone), self._most):
            count *= 2
        count = min(count, self._most)
        furthest = max(held.position for held in everyone) + 1 + CHUNK
        capacity = bucket(min(furthest, self._context), SMALLEST)
        if self._slots is None:
            self._slots = decoding.empty_slots(count, capacity, self._cfg, self._constrain)
            self._held = [None] * count
        elif (count, capacity) != (len(self._held), self._slots.cache.capacity):
            keep = np.zeros(count, np.int32)
            keep[: len(live)] = live
            alive = np.arange(count) < len(live)
            keep, alive = sharding.put_batch((keep, alive), self._mesh)
            self._slots = decoding.refit(self._slots, keep, alive, capacity, self._constrain)
            self._held = [self._held[s] for s in live] + [None] * (count - len(live))

    def _prefill(self, prompt: Sequence[int]) -> Cache:
        """The cache of a prompt without its last token, which the first decode step feeds."""
        n = len(prompt) - 1
        capacity = bucket(max(n, 1), SMALLEST)
        cache = _empty_cache(self._ways, capacity, self._cfg, self._constrain)
        T = min(PIECE, capacity)
        for start in range(0, n, T):
            tokens = np.zeros((self._ways, T), np.int32)
            piece = prompt[start : min(start + T, n)]
            tokens[0, : len(piece)] = piece
            cache = _prefill_piece(
                self._params,
                sharding.put_batch(tokens, self._mesh),
                sharding.put_replicated(np.int32(start), self._mesh),
                cache,
                self._cfg,
                self._constrain,
            )
        return cache

    def _decode(self) -> None:
        """A chunk for all who hold a slot, and what it brought to those who asked."""
        S = len(self._held)
        kinds = {"temperature": "f", "top_p": "f", "top_k": "i", "min_p": "f"}
        sampling = Sampling(**{name: np.zeros((S, 1), f"{kind}4") for name, kind in kinds.items()})
        stops, limit = np.full((S, self._most_stops), -1, np.int32), np.ones(S, np.int32)
        alive = np.zeros(S, bool)
        for s, held in enumerate(self._held):
            if held is None:
                continue
            alive[s], limit[s] = True, held.job.max_new_tokens
            stops[s, : len(held.job.stop_tokens)] = held.job.stop_tokens
            for name in kinds:
                getattr(sampling, name)[s] = getattr(held.job.sampling, name)
        values = sharding.put_batch((sampling, stops, limit, alive), self._mesh)
        assert self._slots is not None
        slots, drawn = decoding.decode_chunk(
            self._params,
            # What was dropped would go on, and keep the chunk from ending early.
            replace(self._slots, active=values[3]),
            *values[:3],
            steps=CHUNK,
            cfg=self._cfg,
            constrain=self._constrain,
            top=self._top if any(held and held.job.logprobs for held in self._held) else 0,
        )
        self._slots = slots
        drawn, generated, active = sharding.to_host((drawn, slots.generated, slots.active))
        for s, held in enumerate(self._held):
            if held is None:
                continue
            new = int(generated[s]) - held.generated
            held.generated, held.position = int(generated[s]), held.position + new
            tokens = drawn[0][s, :new].tolist()
            ended = ""
            if not active[s]:
                self._held[s], held.ended = None, True
                ended = "stop" if tokens[-1] in held.job.stop_tokens else "length"
            own = [x[s, :new] for x in drawn[2:]] if held.job.logprobs else []
            held.job.tell(held.i, Drawn(tokens, ended, *own))


class Stopped(Exception):
    """The server stops; the sample will not be finished."""

    def __str__(self) -> str:
        return "the server is stopping"


def _fail(job: Job, samples: Sequence[int], error: Exception) -> None:
    for i in samples:
        if i not in job.dropped:
            job.tell(i, error)
