"""Charts as inline SVG whose colours are CSS variables, so that one page suits light, dark and
print.

matplotlib is imported inside the functions: it takes the better part of a second.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ARM_COLOURS = 7  # as many as the page's style sheet has; further arms repeat them, dashed
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
# Colours that matplotlib carries through and `_inline` turns into CSS: ink, faint ink, grid.
INK, FAINT, GRID = "#ab0001", "#ab0002", "#ab0003"
CSS = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"}
MAX_POINTS = 500  # a screen's worth; longer curves are averaged into this many bins
WIDTH, HEIGHT = 4.7, 2.4  # inches


@dataclass(frozen=True)
class Curve:
    """One arm's line: steps, mean, low, high [N], over its runs. `colour` is the arm's number."""

    label: str
    colour: int
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def over_runs(
    label: str, colour: int, runs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Curve | None:
    """Mean, least and greatest at each step over the runs that have a number there; a step where
    none has is a gap (NaN). Curves of more than 500 points are averaged bin by bin, keeping the
    extremes in low and high. None where there is no number at all."""
    steps = np.unique(np.concatenate([steps for steps, _ in runs])) if runs else np.array([])
    values_NxS = np.full((len(runs), len(steps)), np.nan)
    for row, (at, values) in zip(values_NxS, runs, strict=True):
        row[np.searchsorted(steps, at)] = values
    if not np.isfinite(values_NxS).any():
        return None
    bins = np.array_split(np.arange(len(steps)), min(len(steps), MAX_POINTS))

    def pick(reduce, values):  # of an empty slice numpy warns; a gap is no mistake here
        return reduce(values[np.isfinite(values)]) if np.isfinite(values).any() else np.nan

    def each(reduce):
        return np.array([pick(reduce, values_NxS[:, b]) for b in bins])

    at = steps if len(bins) == len(steps) else np.array([steps[b].mean() for b in bins])
    return Curve(label, colour, at, each(np.mean), each(np.min), each(np.max))


def line_chart(name: str, curves: Sequence[Curve], fraction: bool, along: str = "step") -> str:
    """An SVG of value over step, a line an arm with its name and last value at its end, and a band
    from least to greatest where the arm has several runs. `fraction` fixes the axis to 0..1. `name`
    keeps the page's ids apart. along: what the axis of steps is called."""
    figure, axes = _axes(HEIGHT)
    for order, curve in enumerate(curves):
        colour, dash = _arm_colour(curve.colour), DASHES[curve.colour // ARM_COLOURS % len(DASHES)]
        marker = "o" if len(curve.steps) <= 30 else ""
        if np.nanmax(curve.high - curve.low) > 0:
            axes.fill_between(
                curve.steps, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0
            )
        axes.plot(
            *(curve.steps, curve.mean),
            color=colour,
            linestyle=dash,
            # the first arm on top and the others wider, so that equal lines all show
            linewidth=1.6 + 0.9 * min(order, 3),
            zorder=3 - order / len(curves),
            marker=marker,
            markersize=3.2,
            markeredgewidth=0,
            clip_on=False,
        )
    if fraction:
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    else:
        low, high = axes.get_ylim()
        least = min(np.nanmin(c.low) for c in curves)
        axes.set_ylim(0 if least >= 0 else low, high if high > 0 or least < 0 else 1)
        axes.yaxis.set_major_locator(_ticker().MaxNLocator(5))
        axes.yaxis.set_major_formatter(lambda value, _: compact(value))
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(6, integer=True))
    axes.set_xlabel(along, fontsize=9, color=FAINT, loc="left")
    first = min(c.steps[0] for c in curves)
    axes.set_xlim(first, max(*(c.steps[-1] for c in curves), first + 1))
    _end_labels(axes, curves)
    return _inline(figure, name)


def stacked_bars(
    name: str, bars: Mapping[str, Mapping[str, float]], parts: Sequence[str], unit: str
) -> str:
    """An SVG with a horizontal bar an arm, made of `parts`, and its total at its end."""
    figure, axes = _axes(0.75 + 0.34 * len(bars))
    rows = list(bars)
    left = np.zeros(len(rows))
    for number, part in enumerate(parts):
        width = np.array([bars[row].get(part, 0.0) for row in rows])
        colour = f"#ad00{number % 6:02x}"
        axes.barh(range(len(rows)), width, left=left, height=0.62, color=colour, label=part)
        left = left + width
    for row, total in enumerate(left):
        axes.annotate(
            *(f"{total:.3g} {unit}", (total, row)),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()
    axes.set_xlim(0, max(float(left.max()), 1e-9) * 1.16)
    axes.grid(False)
    axes.tick_params(axis="y", labelsize=9)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    longest = max(len(_short(row)) for row in rows)
    axes.set_position((0.02 + 0.0165 * longest, 0.02, 0.96 - 0.0165 * longest, 0.66))
    figure.legend(
        loc="upper left",
        ncols=min(len(parts), 5),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.1,
        borderaxespad=0.1,
    )
    return _inline(figure, name)


def _axes(height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="none")
    FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    axes = figure.add_axes((0.09, 0.17, 0.69, 0.77), facecolor="none")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=FAINT, labelsize=8.5, length=0, pad=4)
    axes.grid(axis="y", color=GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    return figure, axes


def _end_labels(axes, curves: Sequence[Curve]) -> None:
    """Names at the line ends, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.085  # the height of a label
    ends = []
    for curve in curves:
        last = np.flatnonzero(np.isfinite(curve.mean))[-1]
        ends.append((float(curve.mean[last]), curve))
    ends.sort(key=lambda end: (end[0], -end[1].colour))  # of equals, the first arm on top
    heights: list[float] = []
    for value, _ in ends:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    excess = heights[-1] - high
    if excess > 0:  # push the pile back down from the top
        ceiling = high
        for i in reversed(range(len(heights))):
            heights[i] = min(heights[i], ceiling)
            ceiling = heights[i] - gap
    texts = [f"{_short(curve.label)} {compact(value)}" for value, curve in ends]
    longest_pt = 10 + 5.3 * max(map(len, texts))
    axes.set_position((0.105, 0.17, 0.895 - longest_pt / (72 * WIDTH), 0.77))
    for height, text, (_, curve) in zip(heights, texts, ends, strict=True):
        axes.annotate(
            text,
            xy=(1, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_arm_colour(curve.colour),
            annotation_clip=False,
            parse_math=False,
        )


def compact(value: float) -> str:
    """Three digits: 0.963, 51.3k, 1.2e-06."""
    if abs(value) >= 9999.5:
        scaled, suffix = (value / 1e6, "M") if abs(value) >= 999.5e3 else (value / 1e3, "k")
        return f"{scaled:.3g}{suffix}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _short(label: str) -> str:
    return label if len(label) <= 16 else label[:15] + "…"


def _arm_colour(number: int) -> str:
    return f"#ac00{number % ARM_COLOURS:02x}"


def _ticker():
    from matplotlib import ticker

    return ticker


def _inline(figure, name: str) -> str:
    """The figure as an <svg> element: no prolog, no date, ids that are unique on the page, colours
    as CSS, the page's font. The same figure gives the same bytes."""
    import matplotlib

    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "selfevolve"}):
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    head = rf'<svg viewBox="\1" role="img" aria-labelledby="{name}-title">'
    svg = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', head, svg)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"#ac00(\w\w)", lambda m: f"var(--arm{int(m[1], 16)})", svg)
    svg = re.sub(r"#ad00(\w\w)", lambda m: f"var(--part{int(m[1], 16)})", svg)
    for colour, css in CSS.items():
        svg = svg.replace(colour, css)
    return svg
