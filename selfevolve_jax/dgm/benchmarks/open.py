"""A benchmark by its name and options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from selfevolve_jax.cache import cache_folder
from selfevolve_jax.dgm import coding
from selfevolve_jax.dgm.benchmarks import human_eval, polyglot, subset, swe_bench
from selfevolve_jax.dgm.benchmarks.toolchains import LANGUAGES
from selfevolve_jax.dgm.contract import Benchmark
from selfevolve_jax.dgm.sandbox.job import Box, Limits
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class BenchmarkConfig:
    """name: polyglot (Aider's; needs path), swe_bench (needs path) or human_eval. path: a clone of
    Aider-AI/polyglot-benchmark; or SWE-bench's data, a json, jsonl or parquet file or a hub name.

    train, held_out: how many tasks evolution sees, and how many it never does; seed draws them.
    agent_s: wall and CPU seconds that an agent has for a task.

    Polyglot: languages; show_tests: the agent sees the tests (the paper's does not); java_jars: a
    folder with JUnit 5, AssertJ and Byte Buddy. SWE-bench: repositories: a folder of OWNER__NAME.git;
    environments: a folder with one prepared Python environment an instance or version."""

    name: Literal["polyglot", "swe_bench", "human_eval"] = "polyglot"
    path: str | None = None
    train: int = 60
    held_out: int = 60
    seed: int = 0
    agent_s: float = 600.0
    languages: tuple[str, ...] = LANGUAGES
    show_tests: bool = False
    java_jars: str | None = None
    repositories: str | None = None
    environments: str | None = None
    data_split: str = "test"

    def __post_init__(self) -> None:
        if self.train < 1 or self.held_out < 0:
            raise UserError(
                f"train={self.train} and held_out={self.held_out}: at least 1 and 0 tasks."
            )
        if self.agent_s <= 0:
            raise UserError(f"agent_s={self.agent_s} must be above 0 seconds.")


def check(config: BenchmarkConfig) -> None:
    """UserError where the path is missing: a recipe may leave it to whoever runs it."""
    if config.name != "human_eval" and config.path is None:
        what = {
            "polyglot": "a clone of Aider-AI/polyglot-benchmark",
            "swe_bench": "a json, jsonl or parquet file, or a hub name such as "
            "SWE-bench/SWE-bench_Verified",
        }[config.name]
        raise UserError(f"the benchmark {config.name} needs --benchmark.path: {what}.")


def open_benchmark(config: BenchmarkConfig, box: Box) -> Benchmark:
    """The benchmark, with the tasks of its subset. Polyglot's references are run first where the cache
    does not know them. Raises UserError, Unavailable."""
    check(config)
    limits = dataclasses.replace(coding.LIMITS, wall_s=config.agent_s, cpu_s=config.agent_s)
    return OPENERS[config.name](config, box, limits)


def _polyglot(config: BenchmarkConfig, box: Box, limits: Limits) -> Benchmark:
    found = polyglot.open_polyglot(
        str(config.path), cache_folder() / "dgm" / "polyglot", config.languages, config.show_tests,
        config.java_jars, limits,
    )  # fmt: skip
    return found.chosen(config.train, config.held_out, config.seed, box)


def _human_eval(config: BenchmarkConfig, box: Box, limits: Limits) -> Benchmark:
    found = human_eval.open_human_eval(limits)
    tasks = subset.choose(found.tasks, config.train, config.held_out, config.seed)
    return dataclasses.replace(found, tasks=tasks)


def _swe_bench(config: BenchmarkConfig, box: Box, limits: Limits) -> Benchmark:
    found = swe_bench.open_swe_bench(
        str(config.path), config.repositories, config.environments, config.data_split, limits
    )
    tasks = subset.choose(found.tasks, config.train, config.held_out, config.seed)
    return dataclasses.replace(found, tasks=tasks)


# Program repair (dgm/repair/benchmark.py) has options of its own, and is opened by its recipe.
OPENERS: dict[str, Callable[[BenchmarkConfig, Box, Limits], Benchmark]] = {
    "polyglot": _polyglot,
    "swe_bench": _swe_bench,
    "human_eval": _human_eval,
}
