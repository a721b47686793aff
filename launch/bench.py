"""`selfevolve bench`: speed, side by side with other projects and with what the machine can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tyro

from selfevolve_jax import run_dir
from selfevolve_jax.bench import own, page, startup, versus, workload
from selfevolve_jax.bench.measure import HEADER, Row, cells
from selfevolve_jax.errors import UserError

MEASUREMENTS: dict[str, Callable[[workload.Workload], list[Row]]] = {
    "rollout": versus.rollout,
    "grpo": versus.grpo_step,
    "prefill": own.prefill,
    "long-tail": own.long_tail,
    "decode": own.decode_step,
    "train": own.train_step,
    "logprob-memory": own.logprob_memory,
    "startup": startup.startup,
}


@dataclass(frozen=True)
class Bench:
    """Measures speed on SmolLM2-135M, in alternation with other projects (installed on first use into
    environments of their own under the cache folder, SELFEVOLVE_CACHE), and prints a table.

    names: some of rollout, grpo, prefill, long-tail, decode, train, logprob-memory, startup; all by
    default. out: a JSON file with every number. page: a Markdown file with the table and what it
    rests on. dtype: of matrix products, ours and theirs. quick: tiny sizes, one round, to see that all
    works; its figures say nothing.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    out: str | None = None
    page: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    quick: bool = False


def bench(options: Bench) -> list[Row]:
    """Prints the table, which it also returns."""
    for name in options.names:
        if name not in MEASUREMENTS:
            raise UserError(
                f"measurement {name!r} is unknown; choose some of {', '.join(MEASUREMENTS)}."
            )
    for file in (options.out, options.page):
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise UserError(f"the folder of {file} does not exist. Make it, or name another file.")
    written = ""
    if options.page is not None and Path(options.page).exists():
        written = Path(options.page).read_text()
        page.put(written, "", options.page)  # what is wrong with it is said before anything runs
    sizes = workload.QUICK if options.quick else workload.Sizes()
    work = workload.load(sizes, options.dtype, _say)
    rows: list[Row] = []
    about = machine()
    for name, measure in MEASUREMENTS.items():
        if options.names and name not in options.names:
            continue
        _say(f"{name} …")
        found = measure(work)
        for row in found:
            _say(" | ".join(cells(row)))
        rows += found
        if options.out is not None:  # after each: half an hour's figures must not hang on the last
            run_dir.write_json_atomic(
                options.out, {"machine": about, "rows": [row.to_dict() for row in rows]}
            )
    _print(rows)
    if options.page is not None:
        text = page.put(written, page.figures(rows, about, _command(options)), options.page)
        run_dir.write_text_atomic(options.page, text)
    return rows


def _command(options: Bench) -> str:
    """As it was typed, but for where its output went."""
    words = ["selfevolve bench", *options.names, *(["--quick"] if options.quick else [])]
    return " ".join([*words, *(["--dtype float32"] if options.dtype == "float32" else [])])


def machine() -> dict[str, Any]:
    """What the figures rest on."""
    names = ("jax", "jaxlib", "numpy", "optax")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _print(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADER)
    for row in rows:
        table.add_row(*cells(row))
    Console().print(table)


def _say(text: str) -> None:
    print(text, flush=True)
