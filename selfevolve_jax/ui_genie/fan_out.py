"""Many fleets as one: over processes of this machine, or over many machines by Ray.

Each hand holds a fleet of its own, with its own browser. All states of an episode go to the same hand
as far as the load allows, so that its screens can go on from where they stand.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.environment import ATTEMPTS, Broken, Fleet, Observation, State

Answers = list[Observation | Broken]
_CLOSING_S = 20.0


class HandLost(Exception):
    """The process behind a hand is gone."""


class Hand(Protocol):
    """A fleet elsewhere. start: hands it states, and returns what waits for its answers and the counts
    of that work; waiting raises HandLost where the fleet is gone. renew: a fresh fleet in its place,
    also while it is at work."""

    def start(self, states: Sequence[State]) -> Callable[[], tuple[Answers, Counter[str]]]: ...

    def renew(self) -> None: ...

    def close(self) -> None: ...


class Fanned:
    """Several hands with the Fleet's observe(). counts: the fleets' own, summed, and "hands_lost"."""

    def __init__(self, hands: Sequence[Hand]) -> None:
        self._hands = hands
        self.counts: Counter[str] = Counter()

    def observe(self, states: Sequence[State]) -> Answers:
        """As Fleet.observe. A hand that is lost is renewed and its states are redone."""
        wanted = list(dict.fromkeys(states))
        seen: dict[State, Observation | Broken] = {}
        parts = [[wanted[i] for i in part] for part in split(wanted, len(self._hands))]
        at_work = {i: part for i, part in enumerate(parts) if part}
        try:
            for attempt in range(ATTEMPTS):
                waits = {i: self._hands[i].start(part) for i, part in at_work.items()}
                for i, wait in waits.items():
                    try:
                        answers, counts = wait()
                    except HandLost as lost:
                        self._hands[i].renew()
                        self.counts["hands_lost"] += 1
                        answers, counts = [], Counter()
                        if attempt == ATTEMPTS - 1:
                            answers = [Broken(f"{lost} ({ATTEMPTS} times)") for _ in at_work[i]]
                            counts["broken"] = len(answers)
                    self.counts += counts
                    seen.update(zip(at_work[i], answers, strict=False))
                at_work = {i: part for i, part in at_work.items() if part[0] not in seen}
        except BaseException:
            # Answers that nobody waits for any more would be taken for those of the next question.
            for i in at_work:
                self._hands[i].renew()
            raise
        return [seen[state] for state in states]

    def close(self) -> None:
        for hand in self._hands:
            hand.close()

    def __enter__(self) -> Fanned:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split(states: Sequence[State], n: int) -> list[list[int]]:
    """The indexes of the states for each of n hands: an episode's home is a function of its task and
    seed alone, and no hand gets more than an equal share (rounded up); what is too much for one goes to
    whoever has least."""
    parts: list[list[int]] = [[] for _ in range(n)]
    share = -(-len(states) // n)
    for i, state in enumerate(states):
        home = parts[zlib.crc32(f"{state.task}\0{state.seed}".encode()) % n]
        part = home if len(home) < share else min(parts, key=len)
        part.append(i)
    return parts


def over_processes(make_fleet: Callable[[], Fleet], n: int) -> Fanned:
    """n processes of this machine. make_fleet: a function of a module, or a functools.partial of one,
    as it is called in the new process."""
    return Fanned([_Process(make_fleet) for _ in range(_positive(n))])


class _Process:
    def __init__(self, make_fleet: Callable[[], Fleet]) -> None:
        self._make_fleet = make_fleet
        self._begin()

    def _begin(self) -> None:
        # spawned: a forked copy of a process with threads, such as JAX's, may hang
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, self._make_fleet), name="fleet", daemon=True
        )
        self._process.start()
        theirs.close()

    def start(self, states: Sequence[State]) -> Callable[[], tuple[Answers, Counter[str]]]:
        try:
            self._pipe.send(list(states))
        except OSError as error:
            lost = HandLost(f"the fleet's process is gone: {error}")

            def gone() -> tuple[Answers, Counter[str]]:
                raise lost

            return gone
        return self._wait

    def _wait(self) -> tuple[Answers, Counter[str]]:
        try:
            answered = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(1)
            code = self._process.exitcode
            raise HandLost(f"the fleet's process ended with code {code}") from error
        if isinstance(answered, Exception):
            raise answered
        return answered

    def renew(self) -> None:
        self._end(0)
        self._begin()

    def close(self) -> None:
        try:
            self._pipe.send(None)
        except OSError:
            self._end(0)
        else:
            self._end(_CLOSING_S)

    def _end(self, patience_s: float) -> None:
        self._process.join(patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, make_fleet: Callable[[], Fleet]) -> None:
    """The life of a process: answers until it is told None, or until who asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks, who then closes this
    fleet: Fleet | None = None
    try:
        while (states := pipe.recv()) is not None:
            try:
                fleet = fleet or make_fleet()
                answer: Any = _answer(fleet, states)
            except Exception as error:
                answer = error if isinstance(error, UserError) else RuntimeError(repr(error))
            pipe.send(answer)
    except (EOFError, OSError):
        pass
    finally:
        if fleet is not None:
            fleet.close()


def _answer(fleet: Fleet, states: Sequence[State]) -> tuple[Answers, Counter[str]]:
    before = fleet.counts.copy()
    answers = fleet.observe(states)
    return answers, fleet.counts - before


def over_ray(make_fleet: Callable[[], Fleet], n: int, cpus: float = 1.0) -> Fanned:
    """n Ray actors, each of `cpus` cores, wherever Ray places them. RAY_ADDRESS names the cluster;
    without one Ray starts on this machine. Every machine needs this project and what its environment
    needs, such as a Chromium. Checked against a stand-in for Ray alone.

    Raises:
        UserError: Ray is not installed.
    """
    _positive(n)
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "Fleets on many machines need Ray, which is missing: uv sync --extra ray"
        ) from error
    if not ray.is_initialized():
        ray.init()
    return Fanned([_Actor(ray, make_fleet, cpus) for _ in range(n)])


class _Actor:
    def __init__(self, ray: Any, make_fleet: Callable[[], Fleet], cpus: float) -> None:
        self._ray, self._make_fleet = ray, make_fleet
        self._remote = ray.remote(_Serving).options(num_cpus=cpus)
        self._actor = self._remote.remote(make_fleet)

    def start(self, states: Sequence[State]) -> Callable[[], tuple[Answers, Counter[str]]]:
        asked = self._actor.observe.remote(list(states))

        def wait() -> tuple[Answers, Counter[str]]:
            try:
                answered = self._ray.get(asked)
            except self._ray.exceptions.RayActorError as error:
                raise HandLost(f"a Ray actor is gone: {error}") from error
            if isinstance(answered, UserError):
                raise answered
            return answered

        return wait

    def renew(self) -> None:
        self._ray.kill(self._actor)
        self._actor = self._remote.remote(self._make_fleet)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # gone, or too slow: killed either way
            self._ray.get(self._actor.close.remote(), timeout=_CLOSING_S)
        self._ray.kill(self._actor)


class _Serving:
    """What a Ray actor runs."""

    def __init__(self, make_fleet: Callable[[], Fleet]) -> None:
        self._make_fleet = make_fleet
        self._fleet: Fleet | None = None

    def observe(self, states: Sequence[State]) -> tuple[Answers, Counter[str]] | UserError:
        try:
            self._fleet = self._fleet or self._make_fleet()
            return _answer(self._fleet, states)
        except UserError as error:  # as a value: Ray would wrap it
            return error

    def close(self) -> None:
        if self._fleet is not None:
            self._fleet.close()


def _positive(n: int) -> int:
    if n < 1:
        raise UserError(f"A fan-out over {n} processes: give 1 or more.")
    return n
