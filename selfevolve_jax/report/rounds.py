"""Agent success and the reward model's F1 by round, an arm a line: the shape of UI-Genie's figure of
self-improvement (arXiv 2505.21496). Standalone SVG on white, for a page of docs as well as for the
report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfevolve_jax.errors import UserError
from selfevolve_jax.report.figures import DASHES, Curve, over_runs
from selfevolve_jax.report.html import printable
from selfevolve_jax.report.replication_figures import LEGEND, _figure, _svg

# Okabe and Ito's colours, which people with colour blindness tell apart; further arms repeat them,
# dashed.
COLOURS = ("#d55e00", "#0072b2", "#4d4d4d", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
PANELS = {
    "agent_success": "Agent success, held-out",
    "reward_model_f1": "Reward-model F1, held-out",
}


def rounds_figure(rounds: Sequence[Mapping[str, Any]]) -> str:
    """An SVG with a panel for each of agent_success and reward_model_f1 that has a number: by round, a
    line an arm, the mean over its seeds, and a band from least to greatest where it has several.

    rounds: {"arm": str, "round": int, "seed": int, "agent_success": share from 0 to 1 or None,
    "reward_model_f1": the same}, in any order, one for each arm, seed and round; "seed" may be absent
    where there is one. Arms keep the order in which they come. A number that is absent, None or NaN is
    a gap. The same rounds give the same bytes.

    UserError where an arm, seed and round is there twice, or where there is no number at all.
    """
    arms = list(dict.fromkeys(str(each["arm"]) for each in rounds))
    _refuse_twins(rounds)
    panels = {name: drawn for name in PANELS if (drawn := _curves(rounds, arms, name))}
    if not panels:
        raise UserError(
            f"the figure of rounds: none of {len(rounds)} rounds has {' or '.join(PANELS)}. "
            "Fix: draw it once a round has been evaluated."
        )
    figure = _figure(3.2)
    lines: dict[str, Any] = {}
    for place, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        for order, curve in enumerate(curves):
            # the later on top and narrower, so that equal lines all show
            line = _draw(axes, curve, max(3.0 - 0.5 * order, 1.4))
            lines.setdefault(curve.label, line)
        axes.set_title(PANELS[name], loc="left", fontsize=9.5)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("round")
        axes.locator_params(axis="x", integer=True)
        last = max(curve.steps[-1] for curve in curves)
        axes.set_xlim(-0.08, max(last, 1) + 0.08)
    shown = [arm for arm in arms if arm in lines]
    legend = figure.legend(
        *([lines[arm] for arm in shown], [_short(arm) for arm in shown]),
        **{"loc": "outside lower center", "ncols": min(len(shown), 3), **LEGEND},
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure, "rounds", "Agent success and reward-model F1 by round")


def _curves(rounds: Sequence[Mapping[str, Any]], arms: Sequence[str], name: str) -> list[Curve]:
    """One for each arm that has a number."""
    found = []
    for number, arm in enumerate(arms):
        by_seed: dict[Any, dict[int, float]] = {}
        for each in rounds:
            if str(each["arm"]) == arm:
                value = each.get(name)
                value = math.nan if value is None else float(value)
                by_seed.setdefault(each.get("seed"), {})[each["round"]] = value
        runs = [
            (np.array(sorted(seen), float), np.array([seen[r] for r in sorted(seen)]))
            for seen in by_seed.values()
        ]
        curve = over_runs(arm, number, runs)
        found += [] if curve is None else [curve]
    return found


def _draw(axes, curve: Curve, width: float):
    colour = COLOURS[curve.colour % len(COLOURS)]
    dash = DASHES[curve.colour // len(COLOURS) % len(DASHES)]
    if np.nanmax(curve.high - curve.low) > 0:
        axes.fill_between(
            *(curve.steps, curve.low, curve.high), color=colour, alpha=0.14, linewidth=0
        )
    (line,) = axes.plot(
        *(curve.steps, curve.mean),
        **{"color": colour, "linestyle": dash, "linewidth": width, "marker": "o", "markersize": 4},
        clip_on=False,
    )
    return line


def _refuse_twins(rounds: Sequence[Mapping[str, Any]]) -> None:
    seen = set()
    for each in rounds:
        key = (str(each["arm"]), each.get("seed"), each["round"])
        if key in seen:
            raise UserError(
                f"the figure of rounds: arm {key[0]!r}, seed {key[1]}, round {key[2]} is there twice. "
                "Fix: give each once."
            )
        seen.add(key)


def _short(arm: str) -> str:
    arm = printable(arm).replace("\n", " ").replace("_", " ").strip()
    return arm if len(arm) <= 28 else arm[:27] + "…"
