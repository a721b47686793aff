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

from selfevolve_jax.dgm.contract import Benchmark, Proposer, Tree
from selfevolve_jax.dgm.recipe import DGMRecipe, Plan, RepairConfig
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.dgm.sandbox.job import Box
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class Tools:
    """submit(pool, function, *arguments) runs function(tools, *arguments) somewhere."""

    benchmark: Benchmark
    proposer: Proposer
    box: Box
    models: Any  # contract.Models, with preflight() and close(); None without
    submit: Callable[..., Future[Any]]


@contextlib.contextmanager
def open_tools(
    recipe: DGMRecipe,
    plan: Plan,
    folder: Path,
    ready: Callable[[Any], None] = lambda models: None,
) -> Iterator[Tools]:
    """folder: where the calls of models are logged. ready: called with the models, where there are
    some, before a sandbox is opened. Raises UserError where a part is missing."""
    submit = _here if recipe.fan_out == "threads" else _by_ray(recipe, plan, folder)
    with contextlib.ExitStack() as stack:
        models = _models(recipe, folder)
        if models is not None:
            stack.callback(models.close)
            ready(models)
        # A grading of a benchmark takes two slots, for tests and solution (benchmarks/apart.py).
        slots = recipe.workers if models is None else 2 * recipe.workers
        box = stack.enter_context(contextlib.closing(open_box(recipe.sandbox, slots)))
        benchmark, proposer = _of_repair(recipe, plan) or _of_models(recipe, box)
        tools = Tools(benchmark, proposer, box, models, submit)
        # a dataclass cannot name itself while it is made
        yield replace(tools, submit=functools.partial(submit, tools))


def first_agent(recipe: DGMRecipe) -> Tree:
    """The agent that the archive begins from."""
    if isinstance(recipe.benchmark, RepairConfig):
        from selfevolve_jax.dgm.repair import proposer

        return proposer.first_agent()
    from selfevolve_jax.dgm.first_agent import FOLDER, load_agent

    return load_agent(recipe.agent or FOLDER)


def _of_repair(recipe: DGMRecipe, plan: Plan) -> Any:
    if not isinstance(recipe.benchmark, RepairConfig):
        return None
    from selfevolve_jax.dgm.repair.benchmark import benchmark
    from selfevolve_jax.dgm.repair.proposer import Genetic

    config = recipe.benchmark
    return benchmark(config.candidates, config.quixbugs), Genetic(plan.donors)


def _models(recipe: DGMRecipe, folder: Path) -> Any:
    if isinstance(recipe.benchmark, RepairConfig):
        return None
    from selfevolve_jax.dgm.benchmarks.open import check
    from selfevolve_jax.dgm.llm.models import open_models

    check(recipe.benchmark)
    return open_models(recipe.models, folder)


def _of_models(recipe: DGMRecipe, box: Box) -> Any:
    from selfevolve_jax.dgm.benchmarks.open import open_benchmark
    from selfevolve_jax.dgm.self_modify import SelfModification

    assert not isinstance(recipe.benchmark, RepairConfig)
    benchmark = open_benchmark(recipe.benchmark, box)
    return benchmark, SelfModification(benchmark)


def _here(tools: Tools, pool: Executor, function: Callable[..., Any], *given: Any) -> Future[Any]:
    return pool.submit(function, tools, *given)


def _by_ray(recipe: DGMRecipe, plan: Plan, folder: Path) -> Callable[..., Future[Any]]:
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
