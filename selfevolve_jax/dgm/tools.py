"""What a job of DGM works with: the benchmark, the proposer, a sandbox, the models; here, or on each of
many machines by Ray."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfevolve_jax.dgm.contract import Benchmark, Models, Proposer
from selfevolve_jax.dgm.recipe import DGMRecipe, Plan
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.dgm.sandbox.job import Box
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class Tools:
    """submit(pool, function, *arguments) runs function(tools, *arguments) somewhere."""

    benchmark: Benchmark
    proposer: Proposer
    box: Box
    models: Models | None
    submit: Callable[..., Future[Any]]


@contextlib.contextmanager
def open_tools(recipe: DGMRecipe, plan: Plan, folder: Path) -> Iterator[Tools]:
    """folder: where the calls of models are logged. Raises UserError where a part is missing."""
    submit = _here if recipe.fan_out == "threads" else _by_ray(recipe, plan)
    with contextlib.closing(open_box(recipe.sandbox, recipe.workers)) as box:
        benchmark = recipe.open_benchmark(box)
        models = recipe.open_models(folder)
        proposer = plan.proposer(benchmark)
        tools = Tools(benchmark, proposer, box, models, submit)
        # a dataclass cannot name itself while it is made
        yield Tools(benchmark, proposer, box, models, functools.partial(submit, tools))


def _here(tools: Tools, pool: Executor, function: Callable[..., Any], *given: Any) -> Future[Any]:
    return pool.submit(function, tools, *given)


def _by_ray(recipe: DGMRecipe, plan: Plan) -> Callable[..., Future[Any]]:
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("fan_out=ray needs the package ray. Fix: uv sync --extra ray.") from None
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    remote = ray.remote(num_cpus=1, max_retries=0)(_there)

    def submit(tools: Tools, pool: Executor, function: Callable[..., Any], *given: Any) -> Any:
        return remote.remote(recipe, plan, function, given).future()

    return submit


def _there(recipe: DGMRecipe, plan: Plan, function: Callable[..., Any], given: Any) -> Any:
    return function(_kept_open(recipe, plan), *given)


@functools.lru_cache(maxsize=1)
def _kept_open(recipe: DGMRecipe, plan: Plan) -> Tools:
    """A Ray worker's own tools, as long as it lives."""
    stack = contextlib.ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="selfevolve-dgm-")))

    return stack.enter_context(
        open_tools(replace(recipe, fan_out="threads", workers=1), plan, folder)
    )
