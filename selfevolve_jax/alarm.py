"""The collapse alarm: a rule over the history of a run's metrics that needs no labels.

Self-training cannot see its own accuracy. Agreement rises and entropy falls in a healthy run as in
one that collapses, ground truth's among them, so neither is a sign by itself. What a healthy run does
not do is let go of the prompt: in collapse, responses skip their reasoning and come to be alike for
all prompts. Those are the signs, each a mean over the last WINDOW steps, held against the first
REFERENCE steps, which are still the base policy's:

    shorter   responses that ended have become shorter by SHORTER standard deviations of the base's
              own lengths (of at least 2% of them): the shortcut is learnt before it takes over.
              Responses that the limit cut off are left out, since learning to end is no collapse; a
              longer response is no sign, since learning to reason makes them longer.
    alike     the share of rows with a response of their own fell by ALIKE and by what chance explains.
    answers   the entropy of all votes, pooled over prompts, fell by ANSWERS of its highest mean and by
              what chance explains.
    noise     the policy's entropy rose by half, and by NOISE nats, above its lowest mean, while the
              votes are all but unanimous: the end state of arXiv 2505.21444, noise plus one answer.
    foreign   what is sampled has become less likely to the base: its mean negative log-likelihood there
              over the last STEADY steps exceeds its lowest such mean by FOREIGN nats a token and by a
              fifth. Training that only sharpens the policy makes samples likelier to the base, and so
              does ground truth; votes that have gone wrong move to what the base would seldom say. The
              earliest sign, and only there where trainer.grpo.kl_coef is above 0.
    drift     the KL to the base exceeds DRIFT nats a token (the paper's figure goes from 0.05 to 1.9);
              under the same condition.

With few prompts a step both move by chance, which explains three standard errors of the difference of
two windows, from the size of the changes between steps. Short responses also meet by chance: of 16 rows
two pairs sometimes do, after many steps in which none did. So a share is also allowed three standard
errors of a share of so many rows.

The alarm fires when any sign shows for HOLD steps in a row. Thresholds were set on eight pairs of runs
of chained arithmetic (docs/design.md), that of foreign on three more of the recipe replicate. The
largest values in their ground-truth arms: shorter 1.23 of 1.75, alike 0.042 of 0.1, answers 0.12 of
0.2, noise 0.04 of 0.1, foreign 0.08 of 0.1; drift is the paper's and was not seen.
What it cannot see is a policy that goes wrong while its answers still depend on the prompt. A task
whose responses are all of one length from the start, and rightly become shorter, would raise it for
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

REFERENCE, WINDOW, STEADY, HOLD = 3, 3, 5, 2
SHORTER, ALIKE, ANSWERS, NOISE, FOREIGN, DRIFT = 1.75, 0.1, 0.2, 0.1, 0.1, 1.0
LENGTH, SPREAD = "response/length_ended", "response/length_spread"
DISTINCT, ANSWER_ENTROPY = "response/distinct", "judge/answer_entropy"
AGREEMENT, ENTROPY = "judge/majority_fraction", "policy/entropy"
KL, SURPRISE = "kl/ref", "kl/ref_nll"
SIGNALS = (LENGTH, SPREAD, DISTINCT, ANSWER_ENTROPY, AGREEMENT, ENTROPY, KL, SURPRISE)

Step = Mapping[str, float]


@dataclass(frozen=True)
class Reading:
    """signs: those that show at the latest step, in words. fired: they have held for HOLD steps."""

    signs: tuple[str, ...] = ()
    fired: bool = False


def signals(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of one step's metrics, or its line in metrics.jsonl, what the rule reads; a null is NaN."""
    return {k: _number(metrics[k]) for k in SIGNALS if k in metrics}


def read(history: Sequence[Step], rows: int) -> Reading:
    """The rule, of the signals of steps 1 to now, of so many rows (prompts) each. A pure function: what
    fired once may be calm again, and whoever asks remembers that it fired."""
    shown = [_signs(history[: len(history) - back], rows) for back in range(HOLD)]
    return Reading(shown[0], all(shown))


def warning(step: int, reading: Reading, mode: str) -> str:
    """What the terminal says when the alarm fires."""
    then = {
        "stop": "The run stops.",
        "rollback": "The run stops and goes back to before the signs.",
    }
    follows = then.get(mode, "trainer.alarm=stop or rollback would end the run.")
    return f"collapse alarm at step {step}: {'; '.join(reading.signs)}. {follows}"


def _signs(history: Sequence[Step], rows: int) -> tuple[str, ...]:
    if len(history) < REFERENCE + WINDOW:
        return ()
    found = []
    length, spread = (_column(history, name) for name in (LENGTH, SPREAD))
    start, now = _mean(length[:REFERENCE]), _mean(length[-WINDOW:])
    scale = max(math.sqrt(_mean(spread[:REFERENCE] ** 2)), 0.02 * start)
    if start - now >= SHORTER * scale:  # NaN, which is no number of responses, compares as False
        found.append(f"responses became shorter, from {start:.1f} to {now:.1f} tokens")
    distinct = _column(history, DISTINCT)
    start, now = _mean(distinct[:REFERENCE]), _mean(distinct[-WINDOW:])
    meet = 3 * math.sqrt(now * (1 - now) / (rows * WINDOW))  # NaN as above
    if start - now >= ALIKE + max(_chance(distinct), meet):
        found.append(f"prompts share responses, distinct ones fell from {start:.2f} to {now:.2f}")
    entropy = _column(history, ANSWER_ENTROPY)
    means = _window_means(entropy)
    if means.max() - means[-1] >= ANSWERS * means.max() + _chance(entropy) > 0:
        found.append(
            f"answers became alike, their entropy fell from {means.max():.2f} to {means[-1]:.2f}"
        )
    means, agreement = (_window_means(_column(history, name)) for name in (ENTROPY, AGREEMENT))
    if agreement[-1] >= 0.9 and means[-1] - means.min() >= max(NOISE, 0.5 * means.min()):
        found.append(f"responses became noisy under agreement of {agreement[-1]:.2f}")
    means = _window_means(_column(history, SURPRISE), STEADY)
    start, now = means.min(), means[-1]
    if now - start >= max(FOREIGN, 0.2 * start):
        found.append(
            f"responses became foreign to the base, from {start:.2f} to {now:.2f} nats a token"
        )
    if (kl := _mean(_column(history[-WINDOW:], KL))) >= DRIFT:
        found.append(f"the KL to the base is {kl:.2f} nats a token")
    return tuple(found)


def _column(history: Sequence[Step], name: str) -> np.ndarray:
    return np.array([step.get(name, math.nan) for step in history], np.float64)


def _window_means(column: np.ndarray, window: int = WINDOW) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(column, window).mean(axis=1)


def _chance(column: np.ndarray) -> float:
    """Three standard errors of the difference of two windows' means. The spread of a step is taken from
    the median change between steps, which a fall of some steps does not move."""
    step = float(np.median(np.abs(np.diff(column)))) / 0.954  # of a normal: sqrt(2) * 0.6745
    return 3 * step * math.sqrt(2 / WINDOW)


def _mean(values: np.ndarray) -> float:
    """Of what is there; NaN if nothing is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else math.nan


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
