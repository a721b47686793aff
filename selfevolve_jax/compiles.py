"""Counts XLA compilations, so that a run can show that nothing is compiled twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen = 0


def _listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    global _seen
    del duration_secs, kwargs
    if event == _EVENT:
        _seen += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def count() -> Iterator[Callable[[], int]]:
    """Yields a function that gives the number of compilations since the start of the block."""
    before = _seen
    yield lambda: _seen - before
