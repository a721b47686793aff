"""The table "paper says / seen here / agrees?" of a replication, each row computed from its data.

Only arms that have ended are judged; `replication_story` defines base, peak, gain and collapse.
Nothing here knows what it ought to find: a run that contradicts the paper gets its "no".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from selfevolve_jax.report.replication import Replication, numbers
from selfevolve_jax.report.replication_story import (
    EPS,
    Story,
    ending,
    fired,
    halved,
    lost,
    start,
    story,
    until,
)

RISE = 0.08  # a gain worth the name
NEAR = 0.03  # "at its peak"; also what a control must not gain
LOSS = 0.05  # a fall that is no noise of 256 held-out problems
LEVEL = 0.01  # peaks no further apart are level
NEARLY_ONE = 0.95  # of a reward
MOST = 0.8  # of the seeds: 4 of 5

Agrees = Literal["yes", "no", "partly", "not run"]


@dataclass(frozen=True)
class Row:
    """claim: what is held to be so. paper: what arXiv 2505.21444 has; "≈" is read off a plot. seen:
    the figures here, and on how many seeds the claim holds; several figures in a row are of the
    seeds in order. agrees: "yes" if it holds on as many seeds as the claim names, "partly" if on
    some or in part, "no" if on none."""

    claim: str
    paper: str
    seen: str
    agrees: Agrees


def verdicts(data: Replication) -> list[Row]:
    """The rows: rise, collapse and its signs, ground truth, cures, samples, control, alarm."""
    most = f"at least {_most(len(data.seeds))} of {len(data.seeds)} seeds"
    return [
        _row(
            *(data, "srt", _rises),
            f"SRT rises by at least {RISE} over the base ({most})",
            ".15 → .32 trained on MATH-12k, .15 → .31 on DAPO (mean of AIME24, AIME25, AMC)",
        ),
        _row(
            *(data, "srt", _collapses),
            f"SRT collapses: it loses at least half of its gain ({most})",
            "on DAPO ≈.31 → .02 between steps ≈480 and 600",
        ),
        _row(
            *(data, "srt", _reward),
            f"The pseudo-reward goes to 1 ({NEARLY_ONE} or more) while accuracy falls ({most})",
            "reward ≈.65 → .98, accuracy ≈.31 → .02",
        ),
        _row(
            *(data, "srt", _labels),
            "Label accuracy falls with the collapse (four fifths of the seeds that collapse)",
            "wrong answers come to earn the reward; no figure noted",
        ),
        _row(
            *(data, "srt", _kl),
            "KL to the base grows with the collapse, to twice its value at accuracy's peak or more "
            "(four fifths of the seeds that collapse)",
            "≈.05 → 1.9",
        ),
        _row(
            *(data, "srt", _entropy),
            f"Entropy is higher at the end than at accuracy's peak ({most})",
            "outputs become noise plus one boxed answer, and an entropy bonus speeds the collapse "
            "up; no figure of entropy itself noted",
        ),
        _row(
            *(data, "ground_truth", _truth),
            f"Ground truth does not collapse, and ends within {NEAR} of its peak (each seed)",
            "rises to .33 on MATH-12k, .36 on DAPO",
        ),
        _row(
            *(data, "early_stop", _keeps_its_peak),
            f"Early stopping on held-out labels ends within {NEAR} of its peak (each seed)",
            "1% of the data held out; the peak coincides over test sets",
        ),
        _row(
            *(data, "offline", _keeps_its_peak),
            f"Offline labels are stable: they end within {NEAR} of their peak (each seed)",
            "≈.30 to .32, stable to step 1,000 (v2: collapsed on MATH-12k past one epoch)",
        ),
        _row(
            *(data, "curriculum_pass_rate", _as_high_as_srt),
            f"Curriculum by pass rate peaks as high as SRT (within {LEVEL}) or higher, and does not "
            "collapse (each seed)",
            "peak ≈.366 (SRT .31, ground truth .36 on DAPO); top third, 3 epochs",
        ),
        _row(
            *(data, "curriculum_majority", _falls_in_the_end),
            f"Curriculum by majority frequency peaks, then falls by more than {NEAR} ({most})",
            "peak ≈.345, falling to ≈.297 by step 1,000; top third, 3 epochs",
        ),
        _row(
            *(data, "filter", _does_not_collapse),
            "The online filter does not collapse within the budget (each seed)",
            "v2: no collapse within the budget; majorities under 0.6 dropped",
        ),
        _samples(data),
        _row(
            *(data, "random", _gains_nothing),
            f"Control: random rewards gain less than {NEAR} (each seed)",
            "no such arm; if it gained, no other gain could be believed",
        ),
        _row(
            *(data, "srt", _alarm),
            f"The collapse alarm, which sees no label, fires before held-out accuracy has lost {LOSS} "
            "from its peak (four fifths of the seeds that lose it)",
            "no alarm",
        ),
        _row(
            *(data, "ground_truth", _no_alarm),
            "The alarm never fires in the ground-truth arm (each seed)",
            "no alarm",
        ),
    ]


Judge = Callable[[Replication, Story, str], tuple[str, Agrees]]


def _row(data: Replication, arm: str, judge: Judge, claim: str, paper: str) -> Row:
    s = story(data, arm)
    if s is None:
        return Row(claim, paper, f"no seed has ended the arm {arm}", "not run")
    seen, agrees = judge(data, s, arm)
    absent = [seed for seed, there in zip(data.seeds, s.ended, strict=True) if not there]
    return Row(claim, paper, f"{seen}; not ended: {numbers(absent)}" if absent else seen, agrees)


def _rises(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    figures = f"base {_each(s, s.base)}; gain {_each(s, s.gain, '+.3f')}"
    return _counted(s.gain >= RISE - EPS, s.ended, _most, figures)


def _collapses(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    seen, agrees = _counted(s.lost_gain, s.ended, _most, _path(s))
    sank = s.ended & ~(s.gain > 0)
    return (f"{seen}; {sank.sum()} never rose above the base" if sank.any() else seen), agrees


def _reward(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    reward = data.curves[arm].get("reward/mean")
    if reward is None:
        return "reward/mean is not logged", "not run"
    end = ending(reward)
    figures = (
        f"reward {_each(s, start(reward))} → {_each(s, end)}; accuracy from its peak "
        f"{_each(s, s.peak)} → {_each(s, s.final)}"
    )
    holds = (end >= NEARLY_ONE) & (s.final <= s.peak - LOSS + EPS)
    return _counted(holds, s.ended, _most, figures)


def _labels(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    labels = data.curves[arm].get("judge/label_accuracy")
    if labels is None:
        return "judge/label_accuracy is not logged", "not run"
    at_peak, end = until(labels, s.peak_step), ending(labels)
    figures = f"at accuracy's peak {_each(s, at_peak)}, at the end {_each(s, end)}"
    return _with_collapse(end <= at_peak - LOSS + EPS, s, figures)


def _kl(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    kl = data.curves[arm].get("kl/ref")
    if kl is None:
        return "kl/ref is not logged", "not run"
    at_peak, end = until(kl, s.peak_step), ending(kl)
    figures = f"at accuracy's peak {_each(s, at_peak)}, at the end {_each(s, end)} nats a token"
    truth, its_kl = story(data, "ground_truth"), data.curves.get("ground_truth", {}).get("kl/ref")
    if truth is not None and its_kl is not None:
        figures += f" (ground truth's end: {_each(truth, ending(its_kl))})"
    return _with_collapse(end >= 2 * at_peak, s, figures)


def _entropy(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    entropy = data.curves[arm].get("policy/entropy")
    if entropy is None:
        return "policy/entropy is not logged", "not run"
    first, at_peak, end = start(entropy), until(entropy, s.peak_step), ending(entropy)
    figures = (
        f"at the start {_each(s, first)}, at accuracy's peak {_each(s, at_peak)}, at the end "
        f"{_each(s, end)} nats a token"
    )
    seen, agrees = _counted(end > at_peak, s.ended, _most, figures)
    fell = int(((end < first) & s.ended).sum())
    if fell:
        seen += (
            f"; from start to end it falls in {fell} of {s.ended.sum()}. Unlike the paper's, these "
            "responses have no free words before the answer that could become noise"
        )
    return seen, agrees


def _truth(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    stands, near = ~s.collapsed & s.ended, s.final >= s.peak - NEAR - EPS
    seen, agrees = _counted(stands & near, s.ended, _all, _path(s))
    seen += f"; no collapse in {stands.sum()} of {s.ended.sum()}"
    return seen, "partly" if agrees == "no" and stands.any() else agrees


def _keeps_its_peak(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    seen, agrees = _counted(s.final >= s.peak - NEAR - EPS, s.ended, _all, _path(s))
    stops = [
        f"{e['step']}" + ("" if e["restored"] is None else f" (back to {e['restored']})")
        for e, there in zip(data.ended[arm], s.ended, strict=True)
        if there and e is not None
    ]
    if stops:
        seen += f"; ended at step {', '.join(stops)}"
    gain = float(np.median(s.gain[s.ended]))
    if agrees == "yes" and gain < RISE - EPS:  # to stay where one began is no cure
        return f"{seen}; but the median gain is only {gain:+.3f}", "partly"
    return seen, agrees


def _as_high_as_srt(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    srt = story(data, "srt")
    both = s.ended & srt.ended if srt is not None else np.zeros_like(s.ended)
    if srt is None or not both.any():
        return f"{_path(s)}; no seed has ended srt, whose peak this is held against", "not run"
    stands, high = ~s.collapsed, s.peak >= srt.peak - LEVEL - EPS
    figures = f"{_path(s)}; SRT's peak {_each(srt, srt.peak)}"
    seen, agrees = _counted(stands & high, both, _all, figures)
    seen += f"; as high in {(high & both).sum()}, no collapse in {(stands & both).sum()}"
    return seen, "partly" if agrees == "no" and ((stands | high) & both).any() else agrees


def _falls_in_the_end(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    falls = (s.gain > 0) & (s.final < s.peak - NEAR - EPS)
    return _counted(falls, s.ended, _most, _path(s))


def _does_not_collapse(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    return _counted(~s.collapsed, s.ended, _all, _path(s))


def _gains_nothing(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    figures = f"gain {_each(s, s.gain, '+.3f')}; at the end {_each(s, s.final - s.base, '+.3f')}"
    return _counted(s.gain < NEAR - EPS, s.ended, _all, figures)


def _alarm(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    at, fell = fired(data, arm), lost(data, arm, LOSS)
    if at is None:
        return "alarm/fired is not logged", "not run"
    figures = f"fires at step {_steps(s, at)}; {LOSS} is first seen lost at step {_steps(s, fell)}"
    losers = s.ended & np.isfinite(fell)
    if not losers.any():
        return f"{figures}: no seed loses it, so there was nothing to warn of", "not run"
    return _counted(at < fell, losers, _most, figures)


def _no_alarm(data: Replication, s: Story, arm: str) -> tuple[str, Agrees]:
    at = fired(data, arm)
    if at is None:
        return "alarm/fired is not logged", "not run"
    seen, agrees = _counted(np.isinf(at), s.ended, _all, f"fires at step {_steps(s, at)}")
    return seen, "no" if agrees == "partly" else agrees  # there is no part of "never"


def _samples(data: Replication) -> Row:
    claim, paper = "Fewer samples a prompt delay the collapse", "they do; no figure noted"
    onsets = {n: halved(data, "srt" if n == 16 else f"n{n}") for n in (4, 8, 16, 32)}
    known = {n: o for n, o in onsets.items() if o is not None and not np.isnan(o).all()}
    absent = ", ".join(f"n = {n}" for n in onsets if n not in known)
    if len(known) < 2:
        return Row(claim, paper, f"not ended, or without a gain: {absent}", "not run")
    medians = [float(np.median(o[~np.isnan(o)])) for o in known.values()]
    told = [
        f"n = {n}: {', '.join(map(_step, onset))} (median {_step(median)})"
        for (n, onset), median in zip(known.items(), medians, strict=True)
    ]
    seen = f"step at which half of the gain is first seen lost, {'; '.join(told)}"
    if absent:
        seen += f"; not ended, or without a gain: {absent}"
    ordered = all(a >= b for a, b in pairwise(medians))
    if medians[0] <= medians[-1]:
        return Row(claim, paper, seen, "no")
    return Row(claim, paper, seen, "yes" if ordered and not absent else "partly")


def _with_collapse(holds: np.ndarray, s: Story, figures: str) -> tuple[str, Agrees]:
    among = s.lost_gain & s.ended
    if not among.any():
        return f"{figures}; no seed collapses after a rise, so it goes with nothing", "no"
    return _counted(holds, among, _most, figures)


def _counted(
    holds: np.ndarray, among: np.ndarray, need: Callable[[int], int], figures: str
) -> tuple[str, Agrees]:
    """`figures` with the number of seeds, of those `among` which it is looked for, where the claim
    `holds`; and what that comes to."""
    count, of = int((holds & among).sum()), int(among.sum())
    agrees: Agrees = "yes" if count >= need(of) else "partly" if count else "no"
    return f"{figures}: holds in {count} of {of}", agrees


def _most(seeds: int) -> int:
    return math.ceil(MOST * seeds - EPS)


def _all(seeds: int) -> int:
    return seeds


def _path(s: Story) -> str:
    return f"peak {_each(s, s.peak)}; final {_each(s, s.final)}"


def _each(s: Story, values: np.ndarray, form: str = ".3f") -> str:
    return ", ".join(
        format(v, form) if math.isfinite(v) else "–" for v in np.where(s.ended, values, np.nan)
    )


def _steps(s: Story, values: np.ndarray) -> str:
    return ", ".join(map(_step, np.where(s.ended, values, np.nan)))


def _step(value: float) -> str:
    return "–" if math.isnan(value) else "never" if math.isinf(value) else f"{value:g}"
