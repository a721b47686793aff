"""What `selfevolve srt replicate` left on disk, as plain arrays: seeds down, steps across.

RUN/config.json                          the resolved recipe, versions, git revision
RUN/seed0/arms/ARM/metrics.jsonl         one line a step
RUN/seed0/summary.json                   figures of the arms that have ended
RUN/seed1/…
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import metrics, run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.report import load

SEEDS = 5  # of the published replication
ARMS = (
    *("srt", "ground_truth", "random", "early_stop", "offline"),
    *("curriculum_pass_rate", "curriculum_majority", "filter", "n4", "n8", "n32"),
)
TITLES = {
    "srt": "SRT",
    "ground_truth": "ground truth",
    "random": "random rewards",
    "early_stop": "SRT, early stopping",
    "offline": "offline labels",
    "curriculum_pass_rate": "curriculum, pass rate",
    "curriculum_majority": "curriculum, majority",
    "filter": "online filter",
    "n4": "SRT, n = 4",
    "n8": "SRT, n = 8",
    "n32": "SRT, n = 32",
}


@dataclass(frozen=True)
class Series:
    """One metric of one arm. steps: [N] int, rising. values: [S, N], NaN where a seed has none."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Replication:
    """S seeds, some of which may not have come as far as others.

    seeds: the numbers of the S rows of every array. arms: those planned, then others found.
    curves: arm -> metric -> Series; also of arms that are still running.
    before, after: arm -> figure ("mean", "majority", "greedy") -> [S]; NaN where the arm has not
      ended. `after` is of the policy that the arm gave back: after early stopping, the best one.
    ended: arm -> a record a seed, {"why", "step", "restored"}, None where it ran all its steps.
    missing: what is not there yet, in words. seconds: of the seeds that have ended, in all.
    record: RUN/config.json.
    """

    run: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    curves: Mapping[str, Mapping[str, Series]]
    before: Mapping[str, Mapping[str, np.ndarray]]
    after: Mapping[str, Mapping[str, np.ndarray]]
    ended: Mapping[str, tuple[Mapping[str, Any] | None, ...]]
    missing: tuple[str, ...]
    seconds: float
    record: Mapping[str, Any]


def collect(run: str | os.PathLike[str]) -> Replication:
    """Reads a replication, finished or not; reads only.

    Raises UserError for what is no run directory, for damaged files, and while nothing is logged.
    """
    folder = epath.Path(run)
    record = run_dir.read_config(folder)
    planned_seeds, planned_arms = _plan(folder, record["config"])
    seeds = tuple(sorted({*planned_seeds, *_seeds_found(folder)}))
    curves = [_curves(folder / f"seed{seed}") for seed in seeds]
    summaries = [_summary(folder / f"seed{seed}") for seed in seeds]
    found = {arm for of_seed in (*curves, *(s["arms"] for s in summaries)) for arm in of_seed}
    if not any(of_arm for of_seed in curves for of_arm in of_seed.values()):
        raise UserError(f"nothing is logged in {run} yet. Fix: wait for a first step.")
    arms = (*planned_arms, *sorted(found - {*planned_arms}))
    return Replication(
        run=os.fspath(run),
        seeds=seeds,
        arms=arms,
        curves={arm: _stack([of_seed.get(arm, {}) for of_seed in curves]) for arm in arms},
        before={arm: _column(summaries, arm, "before") for arm in arms},
        after={arm: _column(summaries, arm, "after") for arm in arms},
        ended={arm: tuple(s["ended"].get(arm) for s in summaries) for arm in arms},
        missing=_missing(seeds, arms, curves, summaries),
        seconds=float(sum(s["seconds"] for s in summaries)),
        record=record,
    )


def title(arm: str) -> str:
    return TITLES.get(arm, arm)


def numbers(seeds: Sequence[int]) -> str:
    """'seed 3', 'seeds 0 to 4', 'seeds 1, 3'."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return "seeds " + ", ".join(map(str, seeds))


def _plan(folder: epath.Path, config: Mapping[str, Any]) -> tuple[Sequence[int], tuple[str, ...]]:
    """The seeds and arms that the config asks for."""
    first, count = config.get("seed", 0), config.get("seeds", SEEDS)
    arms = config.get("arms", ARMS)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (first, count))
    named = isinstance(arms, (list, tuple)) and all(isinstance(arm, str) for arm in arms)
    if not whole or first < 0 or count < 1 or not named:
        raise UserError(
            f"{folder / run_dir.CONFIG} is not of a replication: seed={first!r}, seeds={count!r} "
            f"and arms={arms!r} must be whole numbers and names. Fix: pass the folder of "
            "`selfevolve srt replicate`."
        )
    if config.get("quick"):
        count = 1
    return range(first, first + count), tuple(dict.fromkeys(arms))


def _seeds_found(folder: epath.Path) -> list[int]:
    matches = [re.fullmatch(r"seed(\d+)", path.name) for path in folder.iterdir()]
    # the name as it is written again: seed01 is no folder of ours
    return [int(m[1]) for m in matches if m and m[0] == f"seed{int(m[1])}"]


def _curves(seed: epath.Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Arm -> metric -> (steps [N], values [N]) of one seed; empty for a seed that has not begun."""
    folder = seed / "arms"
    if not folder.exists():
        return {}
    paths = [path for path in sorted(folder.iterdir(), key=lambda p: p.name) if path.is_dir()]
    return {
        path.name: load._curves(metrics.read_metrics(path / run_dir.METRICS))
        for path in paths
        if (path / run_dir.METRICS).exists()
    }


def _summary(seed: epath.Path) -> dict[str, Any]:
    """summary.json, checked, with "ended" by arm; without arms where it is not written yet."""
    arms = load._summary(seed)
    if not arms:
        return {"arms": {}, "ended": {}, "seconds": 0.0}
    raw = run_dir.read_summary(seed)
    ended = {arm: raw["arms"][arm].get("ended") for arm in arms}
    seconds = raw.get("seconds", 0.0)
    sound = all(e is None or _is_end(e) for e in ended.values())
    if not sound or not isinstance(seconds, (int, float)):
        raise UserError(
            f'{seed / run_dir.SUMMARY} is damaged: "ended" needs "why", "step" and "restored", and '
            '"seconds" is a number. Fix: remove the file and --resume the run.'
        )
    return {"arms": arms, "ended": ended, "seconds": seconds}


def _is_end(ended: Any) -> bool:
    return (
        isinstance(ended, dict)
        and isinstance(ended.get("why"), str)
        and isinstance(ended.get("step"), int)
        and (ended.get("restored") is None or isinstance(ended["restored"], int))
    )


def _stack(
    by_seed: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> dict[str, Series]:
    """Metric -> Series over the union of the seeds' steps."""
    stacked = {}
    for name in sorted({name for of_seed in by_seed for name in of_seed}):
        steps = np.unique(np.concatenate([s[name][0] for s in by_seed if name in s]))
        values = np.full((len(by_seed), len(steps)), np.nan)
        for row, of_seed in zip(values, by_seed, strict=True):
            if name in of_seed:
                at, logged = of_seed[name]
                row[np.searchsorted(steps, at)] = logged
        stacked[name] = Series(steps, values)
    return stacked


def _column(summaries: Sequence[Mapping[str, Any]], arm: str, when: str) -> dict[str, np.ndarray]:
    """Figure -> [S], NaN for a seed whose arm has not ended."""
    figures = [s["arms"].get(arm, {}).get(when, {}) for s in summaries]
    return {
        name: np.array([of_seed.get(name, np.nan) for of_seed in figures], float)
        for name in ("mean", "majority", "greedy")
    }


def _missing(
    seeds: Sequence[int],
    arms: Sequence[str],
    curves: Sequence[Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    said = []
    empty = [seed for seed, found in zip(seeds, curves, strict=True) if not found]
    if empty:
        said.append(f"{numbers(empty)}: nothing yet")
    for arm in arms:
        absent, running = [], []
        for seed, found, summary in zip(seeds, curves, summaries, strict=True):
            logged, ended = bool(found.get(arm)), arm in summary["arms"]
            if not logged and seed not in empty:
                absent.append(seed)
            elif logged and not ended:
                running.append(seed)
        if absent:
            said.append(f"{arm}: not run on {numbers(absent)}")
        if running:
            said.append(f"{arm}: not ended on {numbers(running)}, so drawn but not judged")
    return tuple(said)
