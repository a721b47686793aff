"""Measurements side by side: contestants take turns, and a row says who won by how much."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


class Failed(Exception):
    """A contestant that cannot take part, with the reason for the page."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    name: the measurement that it belongs to. what, against: words for the table. ours, theirs: one
    number a round, in `unit`; empty where it was not measured. higher_is_better: of the unit; the
    ratio then reads ours / theirs and must reach the bar, else it must not exceed it. why: why it was
    not measured. notes: what else was found, words to plain data.
    """

    name: str
    what: str
    against: str
    unit: str
    bar: float
    higher_is_better: bool
    ours: Sequence[float] = ()
    theirs: Sequence[float] = ()
    why: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Of the medians."""
        if not self.ours or not self.theirs:
            return None
        return statistics.median(self.ours) / statistics.median(self.theirs)

    @property
    def ratio_spread(self) -> tuple[float, float] | None:
        """Lowest and highest of the rounds' own ratios."""
        if not self.ours or not self.theirs:
            return None
        each = [a / b for a, b in zip(self.ours, self.theirs, strict=True)]
        return min(each), max(each)

    @property
    def met(self) -> bool | None:
        if self.ratio is None:
            return None
        return self.ratio >= self.bar if self.higher_is_better else self.ratio <= self.bar

    def to_dict(self) -> dict[str, Any]:
        derived = {"ratio": self.ratio, "ratio_spread": self.ratio_spread, "met": self.met}
        return asdict(self) | derived


def alternate(
    contestants: Mapping[str, Callable[[], float]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = float("inf"),
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Lets every contestant measure once a round, in turn: (its numbers by name, why each one failed
    by name). One that fails is left out of all rounds. Stops after the round in which `seconds` ran
    out. Each warms itself up beforehand.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    why: dict[str, str] = {}
    began = clock()
    for _ in range(rounds):
        for name, measure in contestants.items():
            if name in why:
                continue
            try:
                found[name].append(measure())
            except Failed as error:
                why[name] = str(error)
                found[name] = []
        if clock() - began > seconds:
            break
    return found, why


def shown(values: Sequence[float]) -> str:
    """Median and, of several, the lowest and highest."""
    if not values:
        return "–"
    middle = _digits(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_digits(min(values))}–{_digits(max(values))})"


def _digits(x: float) -> str:
    """Three significant digits, without an exponent."""
    if x >= 100:
        return f"{x:,.0f}"
    return f"{x:.1f}" if x >= 10 else f"{x:.2f}"


HEADER = ("what", "against", "ours", "theirs", "ratio", "bar", "met")


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, in the order of `HEADER`."""
    sign = "≥" if row.higher_is_better else "≤"
    bar = f"{sign} {row.bar:.2f}"
    if row.ratio is None:
        reason = row.why or "not measured"
        return row.what, row.against, shown(row.ours), "–", reason, bar, "not measured"
    spread = row.ratio_spread
    assert spread is not None
    ratio = f"{row.ratio:.2f}"
    if len(row.ours) > 1:
        ratio += f" ({spread[0]:.2f}–{spread[1]:.2f})"
    ours, theirs = (f"{shown(v)} {row.unit}".rstrip() for v in (row.ours, row.theirs))
    return row.what, row.against, ours, theirs, ratio, bar, "yes" if row.met else "no"


def markdown(rows: Sequence[Row]) -> str:
    """The table as the page has it."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells(row)) + " |" for row in rows]
    return "\n".join(lines)
