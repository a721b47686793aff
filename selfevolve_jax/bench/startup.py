"""From the command to the end of the first step: with an empty compilation cache, and again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selfevolve_jax.bench.measure import Failed, Row, alternate
from selfevolve_jax.bench.workload import Workload

# The quickstart with a base that is made in seconds; it is there before anything is timed.
_COMMAND = (
    *("-m", "launch.cli", "srt", "quickstart", "--arms", "srt"),
    *("--policy.steps", "10", "--trainer.steps", "2"),
)


def startup(work: Workload) -> list[Row]:
    """Each round has an empty cache to begin with."""
    with tempfile.TemporaryDirectory(prefix="selfevolve-bench-") as folder:
        place = Path(folder)
        first_step(place / "base", place / "cache-of-base")
        rounds = iter(range(1, 1 + work.sizes.rounds))
        cache = place

        def first() -> float:
            nonlocal cache
            cache = place / f"cache-{next(rounds)}"
            return first_step(cache / "first", cache)

        def second() -> float:
            return first_step(cache / "second", cache)

        found, why = alternate({"theirs": first, "ours": second}, work.sizes.rounds)
    row = Row(
        "startup",
        "command to first step, selfevolve srt quickstart, second run",
        "first run",
        "s",
        0.5,
        False,
        found["ours"],
        found["theirs"],
        why.get("theirs") or why.get("ours"),
    )
    return [row]


def first_step(run: Path, cache: Path) -> float:
    """Seconds until the first step's samples are on disk, which come after its update is on its
    way; the run is then ended."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    log = run.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    samples = run / "arms" / "srt" / "samples"
    began = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *_COMMAND, "--run-dir", str(run)], env=env, stdout=out, stderr=out
        )
        try:
            while not (samples.is_dir() and any(samples.iterdir())):
                if process.poll() is not None:
                    said = log.read_text(errors="replace").strip().splitlines()
                    raise Failed(f"the run ended with {process.returncode}: {said[-1:]}")
                time.sleep(0.02)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
