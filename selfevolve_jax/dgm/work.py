"""Jobs of a DGM run, many at once, each durable when it ends.

What is to be done is asked of a pure function of the archive, never kept: a job that was in flight when
the run died is simply asked for again, and one whose event is in the log never is.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from typing import Any

from selfevolve_jax.dgm.contract import BudgetSpent, Unavailable
from selfevolve_jax.dgm.sandbox.job import SandboxError
from selfevolve_jax.errors import DiskError, UserError

LEASES = 3  # how often a job whose endpoint or sandbox fails is tried before the run stops
TURN_S = 1.0  # how soon a stop is seen while all workers are busy


class Stopped(Exception):
    """The run ends here and may be resumed: a budget is spent, or it was told to."""


@dataclass(frozen=True)
class Expand:
    """Make a child."""

    agent: int
    parent: int
    generation: int
    slot: int


@dataclass(frozen=True)
class Evaluate:
    """One attempt at one task."""

    agent: int
    task: str
    seed: int


Job = Expand | Evaluate
# (jobs in flight) -> the next one, or None while there is none
Next = Callable[[Collection[Job]], Job | None]


def run_all(
    next_job: Next,
    start: Callable[[Executor, Job], Future[Any]],
    record: Callable[[Job, Any], None],
    failed: Callable[[Job, str], None],
    stop: Callable[[], str],
    workers: int,
    ahead: int,
) -> None:
    """Returns when no job is left and none is in flight.

    next_job: what to do next. start: hands a job to the executor. record: makes a job's result
    durable; called from this thread alone. failed: tells of a lease that counted for nothing. stop: the
    reason to stop now, "" if there is none. ahead: jobs handed out beyond the workers, so that none
    waits for this thread.

    Raises Stopped where a budget is spent, `stop` says so or a job failed LEASES times; what was in
    flight then is finished and recorded first.
    """
    flying: dict[Future[Any], Job] = {}
    leases: Counter[Job] = Counter()
    reason = ""
    with _threads(workers) as pool:
        while True:
            told = stop()  # asked even while the last jobs end: it may end those too
            reason = reason or told
            while not reason and len(flying) < workers + ahead:
                job = next_job(flying.values())
                if job is None:
                    break
                flying[start(pool, job)] = job
            if reason:  # what has not begun does not begin
                flying = {future: job for future, job in flying.items() if not future.cancel()}
            if not flying:
                break
            done, _ = wait(flying, TURN_S, FIRST_COMPLETED)
            for future in done:
                job = flying.pop(future)
                try:
                    result = future.result()
                except DiskError:
                    raise
                except (BudgetSpent, UserError) as spent:  # the latter where a key, say, is refused
                    reason = reason or str(spent)
                except (Unavailable, SandboxError) as error:
                    leases[job] += 1
                    failed(job, str(error))
                    if leases[job] == LEASES:
                        reason = reason or f"{LEASES} times in a row: {error}"
                else:
                    record(job, result)
    if reason:
        raise Stopped(reason)


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[Executor]:
    """An error, a stop at once or Ctrl-C does not wait for what is in flight: closing the sandbox ends
    jobs there."""
    pool = _Daemons(workers)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False)
        raise
    pool.shutdown()


class _Daemons(Executor):
    """As ThreadPoolExecutor, for whose threads the interpreter waits when it exits: one may be with a
    model that does not answer."""

    def __init__(self, workers: int) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"dgm-{n}", daemon=True)
            for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """wait: until all jobs have ended; otherwise those that have not begun never do."""
        if not wait:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
