"""The paper's figures, redrawn from a replication: a median line and a band from least to greatest
over the seeds. Standalone SVG on white, for a page of docs as well as for the report.

matplotlib is imported inside the functions: it takes the better part of a second.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfevolve_jax.report.figures import DASHES
from selfevolve_jax.report.html import printable
from selfevolve_jax.report.replication import Replication, Series, title
from selfevolve_jax.report.replication_story import story

# Okabe and Ito's colours, which people with colour blindness tell apart; where a hue comes back, or is
# near another, the dash differs.
COLOURS = {
    "srt": ("#d55e00", 0),
    "ground_truth": ("#0072b2", 0),
    "random": ("#4d4d4d", 2),
    "early_stop": ("#000000", 1),
    "offline": ("#009e73", 0),
    "curriculum_pass_rate": ("#e69f00", 1),
    "curriculum_majority": ("#cc79a7", 2),
    "filter": ("#56b4e9", 1),
    "n4": ("#56b4e9", 0),
    "n8": ("#0072b2", 1),
    "n32": ("#000000", 2),
}
OTHER = ("#777777", 1)
ACCURACY = "held-out accuracy"
SIGNALS = ("srt", "ground_truth", "offline", "filter", "random")
CURES = ("early_stop", "offline", "curriculum_pass_rate", "curriculum_majority", "filter")
N_NAMES = {"n4": "n = 4", "n8": "n = 8", "srt": "n = 16", "n32": "n = 32"}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "handlelength": 2.8}
WIDTH = 8.0  # inches; 576 px, which a page of docs shows without shrinking it


@dataclass(frozen=True)
class Caption:
    title: str
    says: str


CAPTIONS = {
    "accuracy": Caption(
        "Held-out accuracy of every arm",
        "Mean of samples. Grey: SRT, for comparison. A diamond is the policy that an arm went back to "
        "when it stopped, one a seed.",
    ),
    "rise_and_collapse": Caption(
        "Reward and truth",
        "The reward that the policy trained on beside held-out accuracy: for SRT the agreement with "
        "its own majority, for ground truth the truth of its samples.",
    ),
    "label_accuracy": Caption(
        "Pseudo-labels that are right",
        "Of the training batch of each step. Ground truth's labels are the truth, so it is left out.",
    ),
    "kl": Caption("Distance from the base policy", "KL divergence a token of the training batch."),
    "entropy": Caption("Entropy of the policy", "A response token of the training batch."),
    "samples": Caption(
        "Effect of the number of samples a prompt",
        "SRT with n votes a prompt; n = 16 is the arm srt.",
    ),
    "cures": Caption(
        "Cures by step", "Held-out accuracy. Diamonds: policies that early stopping went back to."
    ),
    "ends": Caption(
        "Peak and end of every arm",
        "Held-out accuracy, a line a seed: hollow at the peak, full for the policy given back. Dotted: "
        "the base, median of the seeds.",
    ),
}


def figures(data: Replication) -> dict[str, str]:
    """Name -> SVG text, in the order of CAPTIONS; a figure that nothing is logged for is left out.
    The same data give the same bytes."""
    drawn = {
        "accuracy": _every_arm(data),
        "rise_and_collapse": _reward_and_truth(data),
        "label_accuracy": _by_step(
            data,
            *([arm for arm in SIGNALS if arm != "ground_truth"], "judge/label_accuracy"),
            "share of right labels",
        ),
        "kl": _by_step(data, SIGNALS, "kl/ref", "KL, nats a token"),
        "entropy": _by_step(data, SIGNALS, "policy/entropy", "entropy, nats a token"),
        "samples": _by_step(data, tuple(N_NAMES), "eval/mean", ACCURACY, N_NAMES)
        if _any(data, ("n4", "n8", "n32"))
        else None,
        "cures": _by_step(data, ("ground_truth", "srt", *CURES), "eval/mean", ACCURACY)
        if _any(data, CURES)
        else None,
        "ends": _ends(data),
    }
    return {
        name: _svg(drawn[name], name, caption.title)
        for name, caption in CAPTIONS.items()
        if drawn[name] is not None
    }


def _every_arm(data: Replication):
    """A panel an arm, all on the same axes."""
    arms = [arm for arm in data.arms if _series(data, arm, "eval/mean") is not None]
    if not arms:
        return None
    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    figure = _figure(0.7 + 1.6 * rows, layout=None)  # "constrained" is slow over a grid
    grid = [figure.add_subplot(rows, columns, i + 1) for i in range(len(arms))]
    height = figure.get_figheight()
    figure.subplots_adjust(
        *(0.08, 0.48 / height, 0.985, 1 - 0.3 / height), wspace=0.12, hspace=0.36
    )
    last = max(data.curves[arm]["eval/mean"].steps[-1] for arm in arms)
    for i, (axes, arm) in enumerate(zip(grid, arms, strict=True)):
        srt = _series(data, "srt", "eval/mean")
        if srt is not None and arm != "srt":
            axes.plot(srt.steps, _median(srt), color="#bbbbbb", linewidth=1.4)
        _line(axes, data, arm, "eval/mean", title(arm), (COLOURS.get(arm, OTHER)[0], 0))
        axes.set_title(printable(title(arm)), loc="left", fontsize=9, parse_math=False)
        _scale(axes, last, True)
        axes.locator_params(axis="x", nbins=4, prune="upper")
        left, bottom = i % columns == 0, i + columns >= len(arms)
        axes.tick_params(labelleft=left, labelbottom=bottom)
        axes.set_ylabel("accuracy" if left else "")
        axes.set_xlabel("step" if bottom else "")
    return figure


def _reward_and_truth(data: Replication):
    arms = [
        arm
        for arm in ("srt", "ground_truth")
        if any(_series(data, arm, metric) for metric in ("reward/mean", "eval/mean"))
    ]
    if not arms:
        return None
    figure = _figure(2.9)
    for i, arm in enumerate(arms):
        axes = figure.add_subplot(1, len(arms), i + 1)
        _line(axes, data, arm, "reward/mean", "training reward", ("#d55e00", 1))
        _line(axes, data, arm, "eval/mean", ACCURACY, ("#0072b2", 0))
        axes.set_title(title(arm), loc="left", fontsize=9.5)
        _scale(axes, _last(axes), True)
        axes.set_xlabel("step")
        axes.set_ylabel("reward, accuracy")
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    figure.legend(*(lines.values(), lines.keys()), loc="outside lower center", ncols=2, **LEGEND)
    return figure


def _by_step(
    data: Replication,
    arms: Sequence[str],
    metric: str,
    unit: str,
    names: Mapping[str, str] | None = None,
):
    """One panel with a line an arm, named beside it."""
    figure = _figure(3.3)
    axes = figure.add_subplot()
    for order, arm in enumerate(arms):
        # the later on top and narrower, so that equal lines all show
        width = max(3.2 - 0.4 * order, 1.4)
        _line(axes, data, arm, metric, (names or {}).get(arm, title(arm)), width=width)
    if not axes.lines:
        return None
    _scale(axes, _last(axes), unit in (ACCURACY, "share of right labels"))
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), **LEGEND)
    return figure


def _ends(data: Replication):
    told = {arm: s for arm in data.arms if (s := story(data, arm)) is not None}
    if not told:
        return None
    figure = _figure(0.8 + 0.36 * len(told))
    axes = figure.add_subplot()
    bases = np.concatenate([s.base[s.ended] for s in told.values()])
    axes.axvline(float(np.median(bases)), color="#777777", linewidth=1.2, linestyle=":")
    for row, (arm, s) in enumerate(told.items()):
        colour, _ = COLOURS.get(arm, OTHER)
        heights = row + np.linspace(-0.26, 0.26, len(data.seeds))[s.ended]
        axes.hlines(heights, s.final[s.ended], s.peak[s.ended], color=colour, linewidth=1.1)
        for values, fill in ((s.peak, "white"), (s.final, colour)):
            axes.scatter(
                *(values[s.ended], heights),
                **_on_top(s=20, facecolor=fill, edgecolor=colour, linewidth=1.1),
            )
    axes.set_yticks(range(len(told)), [printable(title(arm)) for arm in told])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(ACCURACY)
    axes.set_ylabel("arm")
    return figure


def _line(
    axes,
    data: Replication,
    arm: str,
    metric: str,
    label: str,
    look: tuple[str, int] | None = None,
    width: float = 1.8,
) -> None:
    """Median, band and, of accuracies, the policies gone back to. Nothing where nothing is logged."""
    series = _series(data, arm, metric)
    if series is None:
        return
    colour, dash = look or COLOURS.get(arm, OTHER)
    low, high = np.nanmin(series.values, 0), np.nanmax(series.values, 0)
    axes.fill_between(series.steps, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(
        *(series.steps, _median(series)),
        **{"color": colour, "linewidth": width, "label": printable(label)},
        linestyle=DASHES[dash],
        marker="o" if len(series.steps) <= 30 else "",
        markersize=3,
    )
    if metric != "eval/mean":
        return
    for end, mean in zip(data.ended[arm], data.after[arm]["mean"], strict=True):
        if end is not None and end["restored"] is not None and np.isfinite(mean):
            axes.scatter(
                *(end["step"], mean),
                **_on_top(s=30, marker="D", facecolor="white", edgecolor=colour),
            )


def _on_top(**look: Any) -> dict[str, Any]:
    return {"zorder": 3, "clip_on": False, **look}


def _series(data: Replication, arm: str, metric: str) -> Series | None:
    """Without the steps that no seed has a number at; None if there is no number at all."""
    series = data.curves.get(arm, {}).get(metric)
    if series is None:
        return None
    there = np.isfinite(series.values).any(0)
    return Series(series.steps[there], series.values[:, there]) if there.any() else None


def _any(data: Replication, arms: Sequence[str]) -> bool:
    return any(_series(data, arm, "eval/mean") is not None for arm in arms)


def _median(series: Series) -> np.ndarray:
    """[N], over the seeds that have a number at the step."""
    return np.nanmedian(series.values, 0)


def _last(axes) -> float:
    return max(line.get_xdata()[-1] for line in axes.lines)


def _scale(axes, last: float, share: bool) -> None:
    axes.set_xlim(0, max(last, 1))
    if share:
        low, high = axes.dataLim.intervaly
        axes.set_ylim(min(0, low), max(1.02, high))  # a reward may be of another kind than 0 to 1
    else:
        axes.set_ylim(bottom=min(0, axes.dataLim.intervaly[0]))


def _figure(height: float, layout: Literal["constrained"] | None = "constrained"):
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
    FigureCanvasSVG(figure)  # no pyplot: no global state, no display
    return figure


def _svg(figure, name: str, heading: str) -> str:
    """An <svg> element that is also a file: no prolog, no date, ids that no other figure has."""
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8.5)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "selfevolve"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]*)"', rf'xlink:href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{heading}"', 1)
