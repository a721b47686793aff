"""What happened to each arm of a replication on each seed: how high, how low, and when.

Of one arm on one seed, with held-out means as accuracy: base is the accuracy at step 0, peak the
largest of the later evaluations, gain = peak − base, final that of the policy given back; it has
collapsed if final ≤ base + gain/2. Only arms that have ended have a story.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from selfevolve_jax.report.replication import Replication, Series

FEW = 5  # logged steps that are averaged where a metric of training batches is read off
EPS = 1e-9  # of sums of floats


@dataclass(frozen=True)
class Story:
    """One arm's accuracy, [S] each, NaN where the seed's arm has not ended. peak_step: of the first
    evaluation at the peak."""

    base: np.ndarray
    peak: np.ndarray
    peak_step: np.ndarray
    final: np.ndarray

    @property
    def ended(self) -> np.ndarray:
        return np.isfinite(self.base) & np.isfinite(self.peak) & np.isfinite(self.final)

    @property
    def gain(self) -> np.ndarray:
        return self.peak - self.base

    @property
    def collapsed(self) -> np.ndarray:
        """Also true of an arm that never rose above the base: it has no gain to keep."""
        return self.final <= self.base + self.gain / 2 + EPS

    @property
    def lost_gain(self) -> np.ndarray:
        """Collapsed after a rise."""
        return self.collapsed & (self.gain > 0)


def story(data: Replication, arm: str) -> Story | None:
    """None if no seed has ended this arm."""
    means = data.curves.get(arm, {}).get("eval/mean")
    if means is None or not (means.steps > 0).any():
        return None
    later, steps = means.values[:, means.steps > 0], means.steps[means.steps > 0]
    known = np.isfinite(later).any(1)
    at = np.where(np.isfinite(later), later, -np.inf).argmax(1)
    found = Story(
        base=data.before[arm]["mean"],
        peak=np.where(known, later[np.arange(len(later)), at], np.nan),
        peak_step=np.where(known, steps[at], np.nan),
        final=data.after[arm]["mean"],
    )
    return found if found.ended.any() else None


def halved(data: Replication, arm: str) -> np.ndarray | None:
    """[S]: the first evaluation after the peak at which half of the gain is lost; inf where none is;
    NaN where the arm has not ended or never gained. None if no seed has ended it."""
    s = story(data, arm)
    if s is None:
        return None
    step = _first(data.curves[arm]["eval/mean"], s.base + s.gain / 2 + EPS, s.peak_step)
    return np.where(s.ended & (s.gain > 0), step, np.nan)


def fired(data: Replication, arm: str) -> np.ndarray | None:
    """[S]: the step at which the alarm fired, inf where it did not. None if it is not logged."""
    alarm = data.curves[arm].get("alarm/fired")
    if alarm is None:
        return None
    shown = alarm.values > 0
    return np.where(shown.any(1), alarm.steps[shown.argmax(1)], np.inf)


def lost(data: Replication, arm: str, much: float) -> np.ndarray:
    """[S]: the first evaluation that is `much` below the highest and comes after it; inf where there
    is none. The base counts here: it is the highest of an arm that only sinks."""
    means = data.curves[arm]["eval/mean"]
    there = np.where(np.isfinite(means.values), means.values, -np.inf)
    return _first(means, there.max(1) - much + EPS, means.steps[there.argmax(1)])


def start(series: Series) -> np.ndarray:
    """[S]: mean of the first FEW numbers after step 0."""
    return _means(series, slice(None, FEW))


def ending(series: Series) -> np.ndarray:
    """[S]: mean of the last FEW numbers."""
    return _means(series, slice(-FEW, None))


def until(series: Series, step: np.ndarray) -> np.ndarray:
    """[S]: mean of the last FEW numbers up to and including each seed's `step` [S]."""
    early = np.where(series.steps <= step[:, None], series.values, np.nan)
    return ending(Series(series.steps, early))


def _means(series: Series, part: slice) -> np.ndarray:
    rows = [row[np.isfinite(row) & (series.steps > 0)][part] for row in series.values]
    return np.array([row.mean() if row.size else np.nan for row in rows])


def _first(means: Series, bar: np.ndarray, after: np.ndarray) -> np.ndarray:
    """[S]: the first step later than `after` [S] with a value at or under `bar` [S]; inf if none."""
    under = (means.values <= bar[:, None]) & (means.steps > after[:, None])
    return np.where(under.any(1), means.steps[under.argmax(1)], np.inf)
