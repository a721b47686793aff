"""avg@k, maj@k, pass@k and greedy accuracy of a policy over a suite, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from models.config import ModelConfig
from models.decoder import Params
from selfevolve_jax import bootstrap, run_dir, sampling_job
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks.base import Row, Task


def benchmark(
    params: Params,
    model: ModelConfig,
    task: Task,
    rows: Sequence[Row],
    folder: epath.PathLike | None,
    *,
    k: int,
    pass_at: Sequence[int] = (),
    seed: int,
    mesh: Mesh,
    rollout: RolloutConfig,
    sampling: Sampling,
    max_new_tokens: int,
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draws k samples and one greedy text for every row, and grades them against gold.

    Returns the summary {"figures": {name: number}, "intervals": {name: [low, high]}, "problems",
    "samples"}, of avg@k (accuracy of single samples), maj@k (of their vote), pass@k (one of them at
    least is right), pass@j for each j of pass_at (`bootstrap.pass_at`), and greedy. Intervals: 95%
    bootstrap over problems.

    folder: keeps every sample (`sampling_job.draw`, whose arguments and errors the others are) and the
    summary as summary.json; called again, it goes on where it was killed, and to the same bytes. None
    keeps nothing. Other pass_at may be asked of a finished folder.
    UserError for a row without gold, or a j that is not between 1 and k.
    """
    for j in pass_at:
        bootstrap.pass_at(np.zeros(0), k, j)  # refused before anything is drawn
    for row in rows:
        if not (row.gold or "").strip():
            raise UserError(
                f"row {row.id} ({row.prompt[:60]!r}) has no gold answer, which grading needs. Give a "
                "data set with an answer column."
            )
    parts = sampling_job.draw(
        params,
        model,
        task,
        rows,
        folder,
        purpose="evaluation",
        samples=k,
        greedy=True,
        seed=seed,
        mesh=mesh,
        rollout=rollout,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        told=told,
    )
    outcomes = [_outcome(record) for part in parts for record in part]
    summary = {
        **summarise(outcomes, k=k, pass_at=pass_at, seed=seed),
        "problems": len(rows),
        "samples": k,
    }
    if folder is not None and jax.process_index() == 0:
        run_dir.write_summary(run_dir.absolute(folder), summary)
    return summary


def summarise(
    outcomes: Sequence[tuple[int, int, int]], *, k: int, pass_at: Sequence[int], seed: int
) -> dict[str, Any]:
    """{"figures", "intervals"} from each problem's (right samples of k, whether the vote is right,
    whether the greedy text is)."""
    correct_R, majority_R, greedy_R = np.asarray(outcomes, np.int64).T
    columns = {
        f"avg@{k}": correct_R / k,
        f"maj@{k}": majority_R,
        **{f"pass@{j}": bootstrap.pass_at(correct_R, k, j) for j in sorted({*pass_at, k})},
        "greedy": greedy_R,
    }
    ends_Mx2 = bootstrap.intervals(np.stack(list(columns.values()), axis=1), seed)
    return {
        "figures": {name: float(np.mean(values)) for name, values in columns.items()},
        "intervals": dict(zip(columns, ends_Mx2.tolist(), strict=True)),
    }


def _outcome(record: Mapping[str, Any]) -> tuple[int, int, int]:
    """How many samples are right; whether the vote is; whether the greedy text is."""
    right = sum(sample["correct"] for sample in record["samples"])
    return right, int(record["majority_correct"]), int(record["greedy"]["correct"])
