"""When two answers are the same, and the clusters that follow from it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from selfevolve_jax import hosts
from selfevolve_jax.errors import UserError

_WORKER = Path(__file__).with_name("math_worker.py")
_CACHE_ENTRIES = 200_000
_START_S = 180.0  # a cold import of sympy from a slow disk

_Key = TypeVar("_Key")
EqualPairs = Callable[[Sequence[tuple[str, str]]], list[bool]]


class _WorkerDied(Exception):
    """The worker closed its pipes, or was silent for longer than its own limits allow."""


class Equivalence:
    """Symmetric equality of answers; holds the worker process that math-verify needs.

    kind: "exact" compares stripped strings. "math" also holds two answers equal where math-verify
      accepts each for the other; an answer that cannot be parsed, an error, and a check that hits a
      limit are "not equal". Words are products of letters to math-verify (listen = silent): a task
      whose answers are words wants "exact".
    time_limit_s: CPU seconds that one check may take; memory is limited too (math_worker.py).
    timeouts: how many checks were ended by a limit, or ended their worker (twice: such a check is
      tried again, since the machine may have killed the worker for another's sake). They are
      remembered as "not equal" and not tried again. An answer that hits the limit by itself counts
      once, and from then on equals only itself.

    Works from any thread. The worker starts at the first pair that needs it, is replaced when it
    dies, and ends with `close` or with this process. Raises UserError if it cannot start.
    """

    def __init__(self, kind: Literal["exact", "math"] = "math", *, time_limit_s: float = 3.0):
        if kind not in ("exact", "math"):
            raise UserError(f'answer equivalence {kind!r} is unknown; use "exact" or "math"')
        if not time_limit_s > 0:
            raise UserError(f"time_limit_s is {time_limit_s}; it must be greater than 0")
        self.kind = kind
        self.timeouts = 0
        self._time_limit_s = time_limit_s
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._received = bytearray()
        self._usable: dict[str, bool] = {}
        self._equal: dict[tuple[str, str], bool] = {}

    def __enter__(self) -> Equivalence:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def equal_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each pair is equal; the order within a pair does not matter."""
        stripped = [(a.strip(), b.strip()) for a, b in pairs]
        if self.kind == "exact":
            return [a == b for a, b in stripped]
        keys = [(min(pair), max(pair)) for pair in stripped]
        with self._lock:
            wanted = [(a, b) for a, b in dict.fromkeys(keys) if a != b]
            known = {key: self._equal[key] for key in wanted if key in self._equal}
            new = [key for key in wanted if key not in known]
            answers = dict.fromkeys(answer for key in new for answer in key)
            usable = {a: self._usable[a] for a in answers if a in self._usable}
            fresh = [a for a in answers if a not in usable]
            usable |= zip(fresh, self._share([[a] for a in fresh]), strict=True)
            _remember(self._usable, usable)
            comparable = [(a, b) for a, b in new if usable[a] and usable[b]]
            asked = dict.fromkeys(new, False)
            asked |= zip(comparable, self._share([list(key) for key in comparable]), strict=True)
            _remember(self._equal, asked)
            known |= asked
        return [key[0] == key[1] or known[key] for key in keys]

    def close(self) -> None:
        """Ends the worker. A later check would start another."""
        with self._lock:
            process, self._process = self._process, None
            self._received.clear()
            if process is None:
                return
            # It leads a group of its own: itself and the child that it forked.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
            process.wait()

    def _share(self, tasks: list[list[str]]) -> list[bool]:
        """`_ask`, each process of the run its share: a limit that one hits counts for all."""
        before = self.timeouts

        def work(share: Sequence[list[str]]) -> list[tuple[bool, int]]:
            verdicts = self._ask(list(share))
            return [(verdict, self.timeouts - before) for verdict in verdicts]

        told = hosts.split("judge the answers", tasks, work)
        if len(told):
            self.timeouts = before + sum(n for _, n in told[: hosts.count()])
        return [verdict for verdict, _ in told]

    def _ask(self, tasks: list[list[str]]) -> list[bool]:
        """One verdict a task. A task that is ended by a limit costs only itself."""
        codes: list[str] = []
        died = False  # the worker has died on the task that is now first
        # The worker's limits are of CPU time, which a busy machine stretches.
        silence_s = 30 + 10 * self._time_limit_s
        try:
            while len(codes) < len(tasks):
                try:
                    if self._process is None:
                        self._start()
                    self._send(json.dumps(tasks[len(codes) :]).encode() + b"\n", silence_s)
                    while len(codes) < len(tasks) and codes[-1:] != ["!"]:
                        codes.append(self._receive(silence_s))
                        died = False
                    if codes[-1] == "!":
                        self.timeouts += 1
                        codes[-1] = "0"
                except _WorkerDied:
                    self.close()
                    if died:
                        self.timeouts += 1
                        codes.append("0")
                    died = not died
        except BaseException:  # Ctrl-C too: replies to this call must not be read by the next
            self.close()
            raise
        return [code == "1" for code in codes]

    def _start(self) -> None:
        # By path and with -P: neither the user's __main__ nor anything in the working directory or
        # in this folder can be imported by it. In a session of its own, so that Ctrl-C is ours
        # alone.
        command = [sys.executable, "-P", str(_WORKER), str(self._time_limit_s)]
        pipe = subprocess.PIPE
        said = ""
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            while said != "+":  # anything else is a reason, and then it closes its end
                said += self._receive(_START_S)
            # An installation in which every comparison fails must not score everything 0 in
            # silence.
            self._send(b'[["\\\\frac{1}{2}", "0.5"]]\n', _START_S)
            if self._receive(_START_S) == "1":
                return
            said = "it does not find 1/2 equal to 0.5"
        except (OSError, _WorkerDied) as error:
            said = said.removeprefix("+") or str(error)
        self.close()
        raise UserError(
            f"the process that runs math-verify did not start: {said}. Install the project's "
            'dependencies again (uv sync), or compare answers with equivalence="exact"'
        )

    def _send(self, data: bytes, patience_s: float) -> None:
        assert self._process is not None and self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        while data:
            _wait(descriptor, select.POLLOUT, patience_s)
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise _WorkerDied("it closed its input") from error

    def _receive(self, patience_s: float) -> str:
        assert self._process is not None and self._process.stdout is not None
        if not self._received:
            descriptor = self._process.stdout.fileno()
            _wait(descriptor, select.POLLIN, patience_s)
            self._received += os.read(descriptor, 1 << 16)
            if not self._received:
                raise _WorkerDied("it ended")
        return chr(self._received.pop(0))


def _wait(descriptor: int, event: int, patience_s: float) -> None:
    poll = select.poll()  # not select.select, which fails on descriptors above 1023
    poll.register(descriptor, event)
    if not poll.poll(1000 * patience_s):
        raise _WorkerDied(f"it was silent for {patience_s:.0f} s")


def _remember(cache: dict[_Key, bool], new: dict[_Key, bool]) -> None:
    cache.update(new)
    while len(cache) > _CACHE_ENTRIES:
        del cache[next(iter(cache))]  # the oldest


def cluster(answers: Sequence[str | None], equal_pairs: EqualPairs) -> list[int]:
    """The cluster of each answer; -1 for None. See `cluster_groups`."""
    return cluster_groups([answers], equal_pairs)[0]


def cluster_groups(
    groups: Sequence[Sequence[str | None]], equal_pairs: EqualPairs
) -> list[list[int]]:
    """Clusters each group of answers by itself: R lists of G answers in, R lists of G clusters out.

    Equality need not be transitive (28% = 28 and 28% = 0.28, yet 28 ≠ 0.28), so the outcome is
    fixed by an order: a group's distinct strings are taken by count, the most frequent first, then
    by first appearance; each joins the earliest cluster whose representative it equals, or else
    starts a cluster and is its representative. So a cluster is numbered by when it was started, and
    its representative is its most frequent string. None, an unparsable answer, is in no cluster:
    -1.
    """
    # Asked in waves: each group's next representative against all its strings that have no cluster
    # yet. Those are the very pairs that one string at a time would ask, in far fewer calls.
    # most_common is a stable sort over a dict in order of first appearance.
    left = [[s for s, _ in Counter(a for a in g if a is not None).most_common()] for g in groups]
    clusters: list[dict[str | None, int]] = [{None: -1} for _ in groups]
    wave = 0
    while any(left):
        pairs = [(strings[0], other) for strings in left for other in strings[1:]]
        verdicts = iter(equal_pairs(pairs))
        for number, strings in enumerate(left):
            joins = {other: next(verdicts) for other in strings[1:]}
            clusters[number] |= dict.fromkeys(strings[:1], wave)
            clusters[number] |= {other: wave for other, same in joins.items() if same}
            left[number] = [other for other, same in joins.items() if not same]
        wave += 1
    return [[of[a] for a in g] for g, of in zip(groups, clusters, strict=True)]
