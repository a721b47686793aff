"""XLA compilations: counted, so that a run can show that nothing is compiled twice, and kept on disk,
so that the next process need not compile at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


def keep(folder: Path) -> None:
    """Compiled programs are kept in `folder`, up to 4 GiB, the longest unused going first.

    JAX's own variables win: JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off. A folder that cannot be used costs a warning, and
    a hit counts as a compilation.
    """
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # many small ones add up
        "jax_compilation_cache_max_size": 4 * 2**30,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
