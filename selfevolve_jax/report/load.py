"""Run directories in, arms out: what the report shows, read and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import metrics, run_dir
from selfevolve_jax.errors import UserError

# Options in which two runs of the same experiment differ.
NOT_THE_EXPERIMENT = frozenset(("seed", "run_dir", "arms", "arm", "resume", "tracker_id"))


@dataclass(frozen=True)
class Run:
    """One arm of one run. curves: metric name -> (steps [N] int, values [N] float, NaN where a null
    was logged). before, after: headline figures; `ended` tells whether they are from the summary
    or, the run being unfinished, from the first and last evaluation in the metrics."""

    path: str
    arm: str
    config: Mapping[str, Any]  # flat: dotted name -> value
    versions: Mapping[str, Any]
    git: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    before: Mapping[str, float]
    after: Mapping[str, float]
    ended: bool
    samples: Sequence[tuple[int, list[dict[str, Any]]]]  # the first and the last step's rows


@dataclass(frozen=True)
class Arm:
    """The runs (seeds) that are averaged under one name."""

    label: str
    runs: tuple[Run, ...]


def load_arms(run_dirs: Sequence[str | os.PathLike[str]]) -> list[Arm]:
    """The arms of all runs, in the order met. Runs whose arm has the same name and whose configs
    differ in the seed only are one arm; under another config the run's name is added.

    Raises UserError for a directory that is no run, for damaged files and for a run given twice.
    """
    if not run_dirs:
        raise UserError("no run directory given. Fix: name at least one.")
    seen: set[str] = set()
    groups: dict[tuple[str, str], list[tuple[str, Run]]] = {}
    for given in run_dirs:
        path = epath.Path(given)
        resolved = str(path.resolve())
        if resolved in seen:
            raise UserError(f"run directory {given} is given twice. Fix: name each run once.")
        seen.add(resolved)
        for run in _load_run(path):
            same = {
                k: v for k, v in run.config.items() if k.split(".")[-1] not in NOT_THE_EXPERIMENT
            }
            key = (run.arm, json.dumps(same, sort_keys=True))
            groups.setdefault(key, []).append((path.resolve().name, run))
    if not any(run.curves for group in groups.values() for _, run in group):
        raise UserError(
            f"nothing is logged in {', '.join(map(str, run_dirs))} yet. Fix: wait for a first step."
        )
    names = [arm for arm, _ in groups]
    labels: list[str] = []
    for (arm, _), group in groups.items():
        label = arm if names.count(arm) == 1 else f"{arm} ({group[0][0]})"
        if label in labels:
            label += f" #{len(labels) + 1}"
        labels.append(label)
    return [
        Arm(label, tuple(run for _, run in group))
        for label, group in zip(labels, groups.values(), strict=True)
    ]


def _load_run(path: epath.Path) -> list[Run]:
    parent = run_dir.read_config(path)
    summary = _summary(path)
    folder = path / "arms"
    if not folder.exists():
        names = list(summary)
        arm = (
            names[0] if len(names) == 1 else str(parent["config"].get("arm") or path.resolve().name)
        )
        return [_load_arm(path, arm, summary)]
    found = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not found:
        raise UserError(f"{folder} holds no arm yet. Fix: wait for the run's first step.")
    ordered = [name for name in summary if name in found]
    ordered += [name for name in found if name not in summary]
    return [_load_arm(folder / name, name, summary) for name in ordered]


def _load_arm(path: epath.Path, arm: str, summary: Mapping[str, Any]) -> Run:
    record = run_dir.read_config(path)
    curves = _curves(metrics.read_metrics(path / run_dir.METRICS))
    if arm in summary:
        before, after = summary[arm]["before"], summary[arm]["after"]
    else:
        measured = {k.removeprefix("eval/"): v for k, v in curves.items() if k.startswith("eval/")}
        before = {name: float(values[0]) for name, (_, values) in measured.items()}
        after = {name: float(values[-1]) for name, (_, values) in measured.items()}
    files = run_dir.sample_steps(path)
    ends = sorted({min(files), max(files)}) if files else []
    commit = record.get("git_revision")
    return Run(
        path=str(path),
        arm=arm,
        config=run_dir.flatten(record["config"]),
        versions=record.get("versions") or {},
        git=f"{commit}{' with local changes' if record.get('git_dirty') else ''}" if commit else "",
        curves=curves,
        before=before,
        after=after,
        ended=arm in summary,
        samples=[(step, _checked_rows(files[step])) for step in ends],
    )


def _summary(path: epath.Path) -> dict[str, Any]:
    """The "arms" of summary.json, checked; empty for a run that has not ended."""
    if not (path / run_dir.SUMMARY).exists():
        return {}
    arms: Any = run_dir.read_summary(path).get("arms")
    sound = isinstance(arms, dict) and all(
        isinstance(arm, dict)
        and all(isinstance(arm.get(when), dict) for when in ("before", "after"))
        and all(_is_number(v) for when in ("before", "after") for v in arm[when].values())
        for arm in arms.values()
    )
    if not sound:
        raise UserError(
            f'{path / run_dir.SUMMARY} is damaged: "arms" must map each arm to its "before" '
            'and "after" numbers. Fix: remove the file; the report then reads the metrics.'
        )
    return {
        name: {w: {k: v for k, v in arm[w].items() if v is not None} for w in ("before", "after")}
        for name, arm in arms.items()
    }


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    points: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and _is_number(value):
                points.setdefault(name, {})[line["step"]] = np.nan if value is None else value
    return {
        name: (np.array(list(by_step)), np.array(list(by_step.values()), float))
        for name, by_step in points.items()
        if np.isfinite(list(by_step.values())).any()
    }


def _checked_rows(path: epath.Path) -> list[dict[str, Any]]:
    rows = run_dir.read_samples(path)
    for number, row in enumerate(rows, 1):
        votes, images = row.get("votes") or {}, row.get("images") or []
        sound = (
            isinstance(row.get("prompt"), str)
            and isinstance(votes, dict)
            and all(isinstance(count, int) for count in votes.values())
            and isinstance(images, list)
            and all(isinstance(name, str) for name in images)
            and all(
                isinstance(s, dict)
                and isinstance(s.get("text"), str)
                and _is_number(s.get("reward"))
                for s in row["samples"]
            )
        )
        if not sound:
            raise UserError(
                f"{path} line {number} is damaged: a row needs a prompt, votes as counts, images (if "
                "any) as paths, and samples with text and reward. Fix: remove or restore the file."
            )
    return rows


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
