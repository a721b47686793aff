"""Pseudo-labels from a fixed policy: made once, kept as lines that anyone can read, then trained on or
used to choose problems (SRT, arXiv 2505.21444: offline labels; curriculum learning)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from models.config import ModelConfig
from models.decoder import Params
from selfevolve_jax import run_dir, sampling_job
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import equal_to
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks.base import Row, Task

LABELS = "labels.jsonl"
Rank = Literal["pass_rate", "majority_fraction"]


@dataclass(frozen=True)
class Label:
    """One line of labels.jsonl: what a policy's samples say of one row.

    id, question: the row's id and prompt. answer: the representative of the winning cluster, None
    where no sample could be read. majority_fraction: the winner's votes / samples. votes: answers with
    their counts, most first. parsed: samples with an answer. samples: how many were drawn. pass_rate:
    share of the samples that equal gold, None without gold.
    """

    id: int
    question: str
    answer: str | None
    majority_fraction: float
    votes: Mapping[str, int]
    parsed: int
    samples: int
    pass_rate: float | None


def label_rows(
    params: Params,
    model: ModelConfig,
    task: Task,
    rows: Sequence[Row],
    folder: epath.PathLike,
    *,
    samples: int,
    seed: int,
    mesh: Mesh,
    rollout: RolloutConfig,
    sampling: Sampling,
    max_new_tokens: int,
    told: Mapping[str, Any] | None = None,
) -> dict[int, Label]:
    """The majority answer of `samples` samples a row, by row id; clusters, representative and ties are
    those of the majority judge. Gold enters nothing but `pass_rate`.

    folder: gets labels.jsonl, after the parts and config.json of `sampling_job.draw`, whose arguments
    and errors these are. Called again, it goes on where it was killed, and to the same bytes; once
    labels.jsonl is there, it is read and nothing is drawn.
    """
    parts = sampling_job.draw(
        params,
        model,
        task,
        rows,
        folder,
        purpose="labels",
        samples=samples,
        greedy=False,
        seed=seed,
        mesh=mesh,
        rollout=rollout,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        told=told,
    )
    file = run_dir.absolute(folder) / LABELS
    if sampling_job.agreed([file.exists()])[0]:
        return read_labels(folder)
    labels = [_label(record) for part in parts for record in part]
    if jax.process_index() == 0:
        run_dir.write_text_atomic(file, sampling_job.jsonl([asdict(label) for label in labels]))
    return {label.id: label for label in labels}


def _label(record: Mapping[str, Any]) -> Label:
    drawn = record["samples"]
    known = record["majority_correct"] is not None
    return Label(
        id=record["row"],
        question=record["prompt"],
        answer=record["pseudo_label"],
        majority_fraction=record["majority_fraction"],
        votes=record["votes"],
        parsed=sum(sample["answer"] is not None for sample in drawn),
        samples=len(drawn),
        pass_rate=sum(sample["correct"] for sample in drawn) / len(drawn) if known else None,
    )


def read_labels(folder: epath.PathLike) -> dict[int, Label]:
    """The labels that `label_rows` left in `folder`, by row id. UserError for a folder without them, or
    naming the line that is damaged."""
    file = run_dir.absolute(folder) / LABELS
    if not file.exists():
        raise UserError(
            f"{folder} has no {LABELS}. Fix: the folder of a finished `selfevolve label`; one that "
            "was interrupted goes on when the same command is given again."
        )
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}.") from error
    labels: dict[int, Label] = {}
    for number, line in enumerate(lines, start=1):
        try:
            label = _checked(json.loads(line.decode()))
            if label.id in labels:
                raise ValueError(f"id {label.id} comes a second time")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{file} line {number} is damaged: {what}.") from error
        labels[label.id] = label
    return labels


def _checked(record: Any) -> Label:
    """ValueError, TypeError or KeyError where the record is no label."""
    if not isinstance(record, dict):
        raise TypeError("it is not an object")
    label = Label(**{name: record[name] for name in Label.__dataclass_fields__})
    numbers = [label.majority_fraction, *([] if label.pass_rate is None else [label.pass_rate])]
    kinds = {
        "id": type(label.id) is int,
        "question": isinstance(label.question, str),
        "answer": label.answer is None or (isinstance(label.answer, str) and label.answer.strip()),
        "votes": isinstance(label.votes, dict),
        "majority_fraction and pass_rate": all(
            isinstance(x, int | float) and 0 <= x <= 1 for x in numbers
        ),
        "parsed and samples": type(label.parsed) is int and type(label.samples) is int,
    }
    wrong = [name for name, fits in kinds.items() if not fits]
    if wrong:
        raise ValueError(f"{wrong[0]} has a value that it cannot have")
    return label


def with_labels(rows: Sequence[Row], labels: Mapping[int, Label]) -> list[Row]:
    """The rows, each with its label as `Row.label`, None where the policy gave no answer. UserError for
    a row that was not labelled, or was with another prompt."""
    return [replace(row, label=label.answer) for row, label in _paired(rows, labels)]


def top_fraction(
    rows: Sequence[Row], labels: Mapping[int, Label], by: Rank, fraction: float
) -> list[Row]:
    """The `fraction` of the rows that ranks highest by what their labels say, in the order of `rows`:
    the easiest by "pass_rate", the most agreed upon by "majority_fraction". Equal ranks go by id; a row
    at least is kept. UserError as `with_labels`, for a rank without gold, or a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"the fraction of rows to keep is {fraction}: above 0 and at most 1.")
    ranks: dict[int, float] = {}
    for row, label in _paired(rows, labels):
        rank = label.pass_rate if by == "pass_rate" else label.majority_fraction
        if rank is None:
            raise UserError(
                f"row {row.id} has no pass rate, as it had no gold answer when it was labelled. Fix: "
                "rank by majority_fraction, which needs no gold, or label a data set with answers."
            )
        ranks[row.id] = rank
    best = sorted(ranks, key=lambda i: (-ranks[i], i))
    kept = set(best[: max(1, math.floor(fraction * len(best) + 0.5))])
    return [row for row in rows if row.id in kept]


def accuracy(
    rows: Sequence[Row], labels: Mapping[int, Label], equivalence: Equivalence
) -> float | None:
    """Share of the rows with gold whose label equals it, a row without a label counting as wrong; None
    where there is no gold. UserError as `with_labels`."""
    known = [(row, label) for row, label in _paired(rows, labels) if (row.gold or "").strip()]
    if not known:
        return None
    answers = [[label.answer] for _, label in known]
    right = equal_to(answers, [row.gold for row, _ in known], equivalence)
    return float(np.mean(right))


def _paired(rows: Sequence[Row], labels: Mapping[int, Label]) -> list[tuple[Row, Label]]:
    for row in rows:
        if row.id not in labels:
            raise UserError(
                f"row {row.id} ({row.prompt[:60]!r}) has no label. Fix: label this task's own rows, "
                "with the same data set, split and seed."
            )
        asked = labels[row.id].question
        if asked != row.prompt:
            raise UserError(
                f"row {row.id} asks {row.prompt[:60]!r}, but was labelled as {asked[:60]!r}: these "
                "labels are of other rows. Fix: label this task's own rows, with the same data set, "
                "split, seed, chat template and suffix."
            )
    return [(row, labels[row.id]) for row in rows]
