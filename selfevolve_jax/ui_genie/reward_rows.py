"""Judged rows on disk, and what they are made of: one JSON object a line, screenshots by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from etils import epath

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import actions, trajectory
from selfevolve_jax.ui_genie.reward_data import Judged, Level, Seen, Source, Verdict
from selfevolve_jax.ui_genie.trajectory import take

_WORDS = {"level": get_args(Level), "source": get_args(Source), "verdict": get_args(Verdict)}


@dataclass(frozen=True)
class Part:
    """A line of a composition. `level` and `source` are "all" in the lines that sum up."""

    source: str
    level: str
    total: int
    positive: int
    negative: int


def write(path: str | os.PathLike[str], rows: Sequence[Judged]) -> None:
    """Writes the rows, whole or not at all. Screenshots stay where they are: see
    `trajectory.write_screenshots`. DiskError."""
    trajectory.write_lines(epath.Path(path), (as_record(row) for row in rows))


def read(path: str | os.PathLike[str]) -> list[Judged]:
    """What `write` wrote. UserError naming file and line for what is missing or damaged."""
    lines = trajectory.read_lines(epath.Path(path), "pass a file of judged rows")
    return [from_record(where, record) for where, record in lines]


def as_record(row: Judged) -> dict[str, Any]:
    """A row as values that run_dir.jsonable takes."""
    record = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return record | {"action": actions.as_record(row.action)}


def from_record(where: str, record: Mapping[str, Any]) -> Judged:
    """What `as_record` wrote. UserError, beginning with `where`, names a field that is wrong."""
    trajectory.refuse_unknown(where, record, Judged)
    action = trajectory.take_action(where, record, "action")
    if action is None:
        raise UserError(f"{where}: 'action' is null. Fix: mend or remove it.")
    words = {key: take(where, record, key, str) for key in _WORDS}
    for key, allowed in _WORDS.items():
        if words[key] not in allowed:
            raise UserError(
                f"{where}: {key!r} is {words[key]!r}, not one of {', '.join(allowed)}. "
                "Fix: mend or remove it."
            )
    return Judged(
        view=_seen(f"{where}, view", take(where, record, "view", dict)),
        action=action,
        label=take(where, record, "label", bool),
        level=words["level"],
        source=words["source"],
        verdict=words["verdict"],
        provenance=take(where, record, "provenance", dict),
    )


def composition(rows: Sequence[Judged]) -> list[Part]:
    """How many good and bad rows each source and level gave, in the order of `Source`, sources
    without a row left out, then each level's sum and the sum of all: the paper's table of data, for
    these rows."""
    pairs = [(source, level) for source in get_args(Source) for level in get_args(Level)]
    pairs += [("all", level) for level in get_args(Level)]
    parts = [_part(rows, source, level) for source, level in pairs]
    return [part for part in parts if part.total or part.source == "all"] + [
        _part(rows, "all", "all")
    ]


def composition_text(parts: Sequence[Part]) -> str:
    """A composition as a table of plain text, ending with a newline."""
    lines = [("source", "level", "total", "positive", "negative")]
    lines += [
        (part.source, part.level, f"{part.total:,}", f"{part.positive:,}", f"{part.negative:,}")
        for part in parts
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    text = ""
    for line in lines:
        words = [word.ljust(width) for word, width in zip(line[:2], widths[:2], strict=True)]
        words += [word.rjust(width) for word, width in zip(line[2:], widths[2:], strict=True)]
        text += "  ".join(words) + "\n"
    return text


def _part(rows: Sequence[Judged], source: str, level: str) -> Part:
    labels = [
        row.label for row in rows if source in ("all", row.source) and level in ("all", row.level)
    ]
    return Part(source, level, len(labels), sum(labels), len(labels) - sum(labels))


def _seen(where: str, record: Mapping[str, Any]) -> Seen:
    trajectory.refuse_unknown(where, record, Seen)
    history = take(where, record, "history", list)
    shown = take(where, record, "screenshots", list)
    if not all(isinstance(desc, str) for desc in history):
        raise UserError(f"{where}: 'history' is not a list of texts. Fix: mend or remove it.")
    if len(shown) != len(history) + 1:
        raise UserError(
            f"{where}: {len(shown)} screenshots for a history of {len(history)}; there must be one "
            "more. Fix: mend or remove it."
        )
    return Seen(
        trajectory=take(where, record, "trajectory", str),
        step=take(where, record, "step", int),
        goal=take(where, record, "goal", str),
        history=tuple(history),
        screenshots=tuple(
            trajectory.screenshot_name(where, {"screenshots": name}, "screenshots")
            for name in shown
        ),
        frame=trajectory.take_frame(where, record, "frame"),
        elements=trajectory.elements_of(where, record, "elements"),
    )
