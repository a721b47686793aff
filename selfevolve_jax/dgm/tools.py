"""What a job of DGM works with: the benchmark, the proposer, a sandbox, the models; here, or on each of
many machines by Ray."""

from __future__ import annotations

import contextlib
import functools
import importlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfevolve_jax.dgm.contract import Benchmark, Proposer, Tree, Unavailable
from selfevolve_jax.dgm.recipe import DGMRecipe, Plan, RepairConfig
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.dgm.sandbox.job import Box
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class Tools:
    """submit(pool, keep, function, *arguments) runs function(tools, *arguments) somewhere, and
    keep(result) in whichever thread here the result comes to, before the future has it."""

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
    submit = here if recipe.fan_out == "threads" else _by_ray(recipe, plan)
    with contextlib.ExitStack() as stack:
        models = _models(recipe, folder)
        if models is not None:
            stack.callback(models.close)
            ready(models)
        # A grading of a benchmark takes two slots, for tests and solution (benchmarks/apart.py).
        slots = recipe.workers if models is None else 2 * recipe.workers
        box = stack.enter_context(contextlib.closing(open_box(recipe.sandbox, slots)))
        benchmark, proposer = _parts(recipe, plan, box)
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


def _models(recipe: DGMRecipe, folder: Path) -> Any:
    if isinstance(recipe.benchmark, RepairConfig):
        return None
    from selfevolve_jax.dgm.benchmarks.open import check
    from selfevolve_jax.dgm.llm.models import open_models

    check(recipe.benchmark)
    return open_models(recipe.models, folder)


def _parts(recipe: DGMRecipe, plan: Plan, box: Box) -> tuple[Benchmark, Proposer]:
    if isinstance(recipe.benchmark, RepairConfig):
        from selfevolve_jax.dgm.repair.benchmark import benchmark
        from selfevolve_jax.dgm.repair.proposer import Genetic

        return benchmark(recipe.benchmark.candidates, recipe.benchmark.quixbugs), Genetic(
            plan.donors
        )
    from selfevolve_jax.dgm.benchmarks.open import open_benchmark
    from selfevolve_jax.dgm.self_modify import SelfModification

    judged_by = open_benchmark(recipe.benchmark, box)
    return judged_by, SelfModification(judged_by)


Keep = Callable[[Any], None]


def here(
    tools: Tools, pool: Executor, keep: Keep, function: Callable[..., Any], *given: Any
) -> Future[Any]:
    def job() -> Any:
        result = function(tools, *given)
        keep(result)
        return result

    return pool.submit(job)


def _by_ray(recipe: DGMRecipe, plan: Plan) -> Callable[..., Future[Any]]:
    try:
        ray = importlib.import_module(
            "ray"
        )  # an extra; a plain import would be an error to pyright
    except ModuleNotFoundError:
        raise UserError("fan_out=ray needs the package ray. Fix: uv sync --extra ray.") from None
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    remote = ray.remote(num_cpus=1, max_retries=0)(_there)

    def submit(
        tools: Tools, pool: Executor, keep: Keep, function: Callable[..., Any], *given: Any
    ) -> Any:
        result: Future[Any] = Future()
        result.set_running_or_notify_cancel()  # what is on its way is waited for
        answer = remote.remote(recipe, plan, function, given).future()
        answer.add_done_callback(functools.partial(_hand_over, result, keep))
        return result

    return submit


def _hand_over(result: Future[Any], keep: Keep, answer: Future[Any]) -> None:
    """Ray wraps what a job raises in an error of its own, with the traceback in its message; one that
    wraps nothing tells of a machine or a process that is gone."""
    error = answer.exception()
    if error is None:
        try:
            keep(answer.result())
        except BaseException as refused:  # the disk's, say: this thread has nobody else to tell
            result.set_exception(refused)
        else:
            result.set_result(answer.result())
    else:
        cause = getattr(error, "cause", None)
        result.set_exception(cause or Unavailable(f"Ray: {str(error).splitlines()[0]}"))


def _there(recipe: DGMRecipe, plan: Plan, function: Callable[..., Any], given: Any) -> Any:
    return function(_kept_open(recipe, plan), *given)


_STACK = contextlib.ExitStack()  # what is not held on to is closed


@functools.lru_cache(maxsize=1)
def _kept_open(recipe: DGMRecipe, plan: Plan) -> Tools:
    """A Ray worker's own tools, as long as it lives. Its log of calls stays on its machine; what they
    cost comes back with each result."""
    folder = Path(_STACK.enter_context(tempfile.TemporaryDirectory(prefix="selfevolve-dgm-")))
    return _STACK.enter_context(
        open_tools(replace(recipe, fan_out="threads", workers=1), plan, folder)
    )
