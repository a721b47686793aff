"""How good a reward model's scores are: right or wrong, calibrated or not, and where.

A known weakness of such models is a near-constant preference for `terminate`, so that is measured by
itself. What cannot be said (the recall of a class without rows) is None, which is neither 0 nor 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THRESHOLD = 0.5  # a score above it says yes


@dataclass(frozen=True)
class Scored:
    """A judged action beside the model's score of it.

    score: P(+), 0 to 1. label: whether it is right. action: its type, such as "click". source: where
      the row came from; level: "step" or "outcome". state: names the screen that it was proposed on.
    claims: the action says that the task is done, terminate(success); it is right where it is so.
    ValueError for a score that is no probability.
    """

    score: float
    label: bool
    action: str
    source: str = ""
    level: str = "step"
    state: str = ""
    claims: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score {self.score} of a {self.action} is no probability")


def measure(rows: Sequence[Scored], bins: int = 10) -> dict[str, Any]:
    """Everything, as JSON values: `figures` of all rows, `reliability`, `terminate_bias`, and tables of
    figures under "by_action", "by_source" and "by_level"."""
    return {
        **figures(rows, bins),
        "reliability": reliability(rows, bins),
        "terminate": terminate_bias(rows),
        "by_action": _table(rows, lambda row: row.action, bins),
        "by_source": _table(rows, lambda row: row.source, bins),
        "by_level": _table(rows, lambda row: row.level, bins),
    }


def figures(rows: Sequence[Scored], bins: int = 10) -> dict[str, Any]:
    """n, positive (rows that are right), of that class f1, precision and recall; f1_of_yes, that of a
    model that always says yes; then accuracy, brier (mean squared error of the score), ece
    (expected calibration error, in `bins` bins) and auc (area under the ROC curve: how often a right
    row's score is above a wrong one's, ties half).

    None: precision where no score says yes, recall and both f1 where no row is right, auc unless some
    are right and some wrong, the rest without rows.
    """
    yes = [row for row in rows if row.score > THRESHOLD]
    right = sum(row.label for row in rows)
    hits = sum(row.label for row in yes)
    agree = sum((row.score > THRESHOLD) == row.label for row in rows)
    n = len(rows)
    return {
        "n": n,
        "positive": right,
        "f1": 2 * hits / (len(yes) + right) if right else None,
        "precision": hits / len(yes) if yes else None,
        "recall": hits / right if right else None,
        "f1_of_yes": 2 * right / (n + right) if right else None,
        "accuracy": agree / n if n else None,
        "brier": sum((row.score - row.label) ** 2 for row in rows) / n if n else None,
        "ece": _ece(rows, bins),
        "auc": _auc(rows),
    }


def empty(found: Mapping[str, Any]) -> str | None:
    """Which class of `figures` has no row, in words, as its rates say nothing; None for neither."""
    if not found["n"]:
        return "no rows"
    return {0: "no right rows", found["n"]: "no wrong rows"}.get(found["positive"])


def reliability(rows: Sequence[Scored], bins: int = 10) -> list[dict[str, Any]]:
    """The reliability diagram: for each of `bins` equal intervals of the score (the last one includes
    1), its bounds, n, the mean score and the share of rows that are right, None where it is empty."""
    held: list[list[Scored]] = [[] for _ in range(bins)]
    for row in rows:
        held[min(int(row.score * bins), bins - 1)].append(row)
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "n": len(part),
            "score": _mean([row.score for row in part]),
            "right": _mean([float(row.label) for row in part]),
        }
        for i, part in enumerate(held)
    ]


def terminate_bias(rows: Sequence[Scored]) -> dict[str, Any]:
    """Whether the model likes to hear that the task is done, on states where it is not.

    bias: on states where both were scored, the mean over states of (score of terminate(success) less
      the mean score of the other wrong actions there); 0 is without bias, and None without such a
      state. compared: how many states.
    believed: of all states with a wrong terminate(success), the share where its score says yes.
      incomplete: how many states.
    """
    claimed: dict[str, list[float]] = {}
    others: dict[str, list[float]] = {}
    for row in rows:
        if not row.label:
            (claimed if row.claims else others).setdefault(row.state, []).append(row.score)
    both = [state for state in claimed if state in others]
    gaps = [_sure_mean(claimed[s]) - _sure_mean(others[s]) for s in both]
    believed = [float(_sure_mean(scores) > THRESHOLD) for scores in claimed.values()]
    return {
        "bias": _mean(gaps),
        "compared": len(both),
        "believed": _mean(believed),
        "incomplete": len(claimed),
    }


def _table(
    rows: Sequence[Scored], key: Callable[[Scored], str], bins: int
) -> dict[str, dict[str, Any]]:
    names = sorted({key(row) for row in rows})
    return {name: figures([row for row in rows if key(row) == name], bins) for name in names}


def _auc(rows: Sequence[Scored]) -> float | None:
    right = [row.score for row in rows if row.label]
    wrong = [row.score for row in rows if not row.label]
    if not right or not wrong:
        return None
    from scipy.stats import rankdata  # half a second to import

    above = rankdata([*right, *wrong])[: len(right)].sum() - len(right) * (len(right) + 1) / 2
    return float(above) / (len(right) * len(wrong))


def _ece(rows: Sequence[Scored], bins: int) -> float | None:
    """Σ over bins of their share of the rows · |mean score − share that is right|."""
    if not rows:
        return None
    full = [part for part in reliability(rows, bins) if part["n"]]
    return sum(part["n"] * abs(part["score"] - part["right"]) for part in full) / len(rows)


def _sure_mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean(values: Sequence[float]) -> float | None:
    return _sure_mean(values) if values else None
