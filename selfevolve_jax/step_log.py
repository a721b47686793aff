"""What the host knows of a training step: seconds, rewards, votes, and every sample for the log."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.judges.base import Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.ground_truth import label_accuracy, sample_accuracy
from selfevolve_jax.resample import Judged
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import Row


class Clock:
    """Seconds of each part of a step, by name. `update_wait` is what was left of the step before's
    update when this step began, so the parts of a long run add up to its time."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.parts: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        name = f"time/{name}_s"  # a part may come several times in a step
        self.parts[name], self.last = self.parts.get(name, 0.0) + now - self.last, now

    def metrics(self, sampled_tokens: int) -> dict[str, float]:
        """sampled_tokens: of the samples that were drawn meanwhile, whichever step they are for."""
        total = self.last - self.start
        return self.parts | {
            "time/step": total,
            "throughput/tokens_per_s": sampled_tokens / total,
        }


def sample_metrics(judged: Judged, equivalence: Equivalence, gold_known: bool) -> dict[str, float]:
    """What the host knows of a step: rewards, votes, lengths and, where gold exists, the truth."""
    rows, samples, verdict = judged.rows, judged.samples, judged.verdict
    metrics = {
        "reward/mean": _mean(verdict.rewards_RxG[verdict.trained_RxG]),
        "judge/majority_fraction": _mean(verdict.majority_fraction_R),
        "judge/vote_entropy": _mean([_entropy(v.values()) for v in verdict.votes]),
        "judge/parsed": _mean([[a is not None for a in group] for group in verdict.answers]),
        "judge/timeouts": float(verdict.timeouts),
        "judge/trained_fraction": _mean(verdict.trained_RxG),
        "response/length_mean": _mean(samples.lengths_RxG),
        "response/length_max": float(samples.lengths_RxG.max()),
        "response/cut_off": _mean(~samples.stopped_RxG),
    }
    ended = samples.lengths_RxG[samples.stopped_RxG]
    metrics["response/length_ended"] = float(ended.mean()) if ended.size else math.nan
    metrics["response/length_spread"] = float(ended.std()) if ended.size else math.nan
    metrics |= diversity(rows, judged.texts, verdict)
    metrics |= {f"reward/{k}": _mean(v) for k, v in verdict.parts.items()}
    if gold_known:
        metrics["judge/label_accuracy"] = float(
            np.nanmean(label_accuracy(rows, verdict, equivalence))
        )
        metrics["reward/gold"] = _mean(sample_accuracy(rows, verdict, equivalence))
    return metrics


def diversity(
    rows: Sequence[Row], texts: Sequence[Sequence[str]], verdict: Verdict
) -> dict[str, float]:
    """How much the answers depend on the prompt, without labels; the collapse alarm reads it.

    judge/answer_entropy: entropy in nats of all votes of the batch, pooled over prompts.
    judge/answer_top: share of the prompts with a vote whose winner is the commonest winner.
    response/distinct: distinct responses over distinct rows, a row's response being the commonest
      text among its samples (the first among equals). 1 wherever texts are long and free.
    """
    pooled: Counter[str] = Counter()
    for votes in verdict.votes:
        pooled.update(votes)
    winners = Counter(next(iter(votes)) for votes in verdict.votes if votes)
    commonest = {Counter(group).most_common(1)[0][0] for group in texts}
    return {
        "judge/answer_entropy": _entropy(pooled.values()),
        "judge/answer_top": max(winners.values(), default=0) / max(winners.total(), 1),
        "response/distinct": min(1.0, len(commonest) / len({row.id for row in rows})),
    }


def _entropy(counts: Any) -> float:
    """Entropy in nats of the votes for parsed answers; 0 without any."""
    p = np.asarray(list(counts), np.float64)
    p = p / p.sum() if p.size else p
    return float(-(p * np.log(p)).sum())


def _mean(values: Any) -> float:
    values = np.asarray(values, np.float64)
    return float(values.mean()) if values.size else 0.0


def sample_records(
    step: int, judged: Judged, dropped: Judged | None = None
) -> list[dict[str, Any]]:
    """Every rollout of a step with every named reward part, as the samples log keeps it; with a
    teacher, the texts that it voted with too. dropped: rows that gave way to others, marked so."""
    rows, samples, verdict = judged.rows, judged.samples, judged.verdict
    records = [
        _record(step, r, row, judged.texts[r], samples, verdict) for r, row in enumerate(rows)
    ]
    for record, voted in zip(records, judged.teacher_texts, strict=False):
        record["teacher_texts"] = list(voted)
    if dropped is not None:
        records += [record | {"dropped": True} for record in sample_records(step, dropped)]
    return records


def with_pictures(
    records: Sequence[dict[str, Any]], rows: Sequence[Row], folder: epath.PathLike
) -> list[dict[str, Any]]:
    """The records of `sample_records` with "images": where the pictures of their rows are found, kept
    in the run directory `folder` as `run_dir.keep_image` does. rows: those of the records, in order.

    Only of the first `run_dir.ROWS_SHOWN` rows, which the report can show: a published step asks 512
    questions, and with all their pictures a run would soon hold its data set again. Records of rows
    without pictures stay as they are. Raises DiskError if the disk refuses."""
    told = list(records)
    for i, row in enumerate(rows[: run_dir.ROWS_SHOWN]):
        if row.images:
            told[i] = records[i] | {"images": [run_dir.keep_image(folder, f) for f in row.images]}
    return told


def _record(
    step: int, r: int, row: Row, texts: Sequence[str], samples: Samples, verdict: Verdict
) -> dict[str, Any]:
    return {
        "step": step,
        "row": row.id,
        "prompt": row.prompt,
        "gold": row.gold,
        "pseudo_label": verdict.pseudo_labels[r],
        "majority_fraction": float(verdict.majority_fraction_R[r]),
        "votes": dict(verdict.votes[r]),
        "samples": [
            {
                "text": text,
                "answer": verdict.answers[r][g],
                "reward": float(verdict.rewards_RxG[r, g]),
                "trained": bool(verdict.trained_RxG[r, g]),
                "parts": {k: float(v[r, g]) for k, v in verdict.parts.items()},
                "length": int(samples.lengths_RxG[r, g]),
                "stopped": bool(samples.stopped_RxG[r, g]),
            }
            for g, text in enumerate(texts)
        ],
    }


def shown(judged: Judged) -> list[tuple[str, str, float]]:
    rewards = judged.verdict.rewards_RxG
    return [
        (row.prompt, judged.texts[r][0], float(rewards[r, 0]))
        for r, row in enumerate(judged.rows[:3])
    ]
