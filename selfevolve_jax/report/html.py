"""One self-contained HTML page about one or several runs; it needs no network and no JavaScript."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.mm_upt import published
from selfevolve_jax.report import figures
from selfevolve_jax.report.load import Arm, Run, load_arms
from selfevolve_jax.report.shown import pictured

ROWS_SHOWN, SAMPLES_SHOWN, VOTES_SHOWN = run_dir.ROWS_SHOWN, 3, 5
TEXT_SHOWN = 1500  # characters of a prompt or a response
COLLAPSE_DROP = 0.05  # a fall from the peak that is worth a sentence; beyond held-out noise


@dataclass(frozen=True)
class Chart:
    metric: str
    title: str
    says: str
    fraction: bool = False


HELD_OUT = (
    Chart("eval/mean", "Held-out accuracy, mean of samples", "How often a sample is right.", True),
    Chart("eval/majority", "Held-out accuracy of the majority", "One vote a problem.", True),
    Chart("eval/greedy", "Held-out accuracy, greedy", "The likeliest token at each place.", True),
)
SIGNAL = (
    Chart(
        *("reward/mean", "Reward that the policy trained on"),
        "What it was told. If this rises while held-out accuracy falls, it is fooling itself.",
        True,
    ),
    Chart(
        *("reward/gold", "Accuracy of its rollouts"),
        "The same samples against the true answers, which a label-free judge never sees.",
        True,
    ),
    Chart("judge/label_accuracy", "Pseudo-labels that are right", "Share of those given.", True),
    Chart(
        *("judge/majority_fraction", "Share of the samples that voted for the winner"),
        "1 is unanimity.",
        True,
    ),
    Chart("judge/vote_entropy", "Disagreement within a problem's votes", "Entropy in nats."),
)
POLICY = (
    Chart("kl/ref", "Distance from the starting policy", "KL divergence a token, in nats."),
    Chart("policy/entropy", "Entropy of the policy", "A token, in nats. At 0 nothing is explored."),
    Chart("response/length_mean", "Length of a response", "Mean, in tokens."),
    Chart("policy/clip_fraction", "Clipped tokens", "Share of tokens outside the trust region."),
    Chart("policy/sampler_gap", "Sampler and trainer apart", "Log-prob difference; ideally 0."),
)
SPEED = (
    Chart("throughput/tokens_per_s", "Tokens generated a second", ""),
    Chart("compile/count", "Programs compiled so far", "Flat once every shape has been met."),
)
NAMES = {"mean": "mean", "majority": "majority", "greedy": "greedy"}
NOT_PARTS = ("time/total", "time/step", "time/wall")  # sums of the other parts


def write_report(
    run_dirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> epath.Path:
    """Writes the report and returns its path.

    run_dirs: runs with one arm or several; runs of one arm that differ in their seed only are drawn
      as one line with a band.
    out: an .html file, or a directory to hold report.html. None: in the run directory if there is
      one, in the working directory if there are several.

    The same directories give the same bytes. Raises UserError for missing or damaged inputs and
    DiskError if the disk refuses.
    """
    path = epath.Path(out if out is not None else run_dirs[0] if len(run_dirs) == 1 else ".")
    if path.suffix != ".html":
        path = path / run_dir.REPORT
    page = render(load_arms(run_dirs))
    with run_dir.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    run_dir.write_text_atomic(path, page)
    return path


def render(arms: Sequence[Arm]) -> str:
    """The page, as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfevolve_jax.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["cut"] = cut
    names = metric_names(arms)
    runs = [run for arm in arms for run in arm.runs]
    return environment.get_template("template.html.j2").render(
        arms=[(i, arm.label, len(arm.runs)) for i, arm in enumerate(arms)],
        colours=figures.ARM_COLOURS,
        paths=list(dict.fromkeys(_experiment(run) for run in runs)),
        ended=all(run.ended for run in runs),
        findings=findings(arms),
        metrics=[(name, NAMES.get(name, name.replace("_", " "))) for name in names],
        table=[(i, arm.label, [change(arm, name) for name in names]) for i, arm in enumerate(arms)],
        paper=beside_paper(arms),
        published=published,
        sections=sections(arms),
        samples=[
            (i, arm.label, _shown(arm.runs[0])) for i, arm in enumerate(arms) if arm.runs[0].samples
        ],
        shown=(ROWS_SHOWN, SAMPLES_SHOWN, VOTES_SHOWN),
        config=side_by_side(arms, lambda run: run.config),
        versions=side_by_side(
            arms, lambda run: {"git revision": run.git or "none", **run.versions}
        ),
    )


def metric_names(arms: Sequence[Arm]) -> list[str]:
    """Headline metrics that any run has: mean, majority, greedy first, others by name."""
    present = {name for arm in arms for run in arm.runs for name in (*run.before, *run.after)}
    return [n for n in NAMES if n in present] + sorted(present - NAMES.keys())


@dataclass(frozen=True)
class Change:
    """A headline figure of an arm: mean, least and greatest over its runs. None where unknown."""

    before: tuple[float, float, float] | None
    after: tuple[float, float, float] | None
    rise: float | None


def change(arm: Arm, metric: str) -> Change:
    """The rise is the mean over runs that have both figures, so never between different runs."""

    def spread(values: list[float]) -> tuple[float, float, float] | None:
        finite = [v for v in values if np.isfinite(v)]
        return (float(np.mean(finite)), min(finite), max(finite)) if finite else None

    before = spread([r.before[metric] for r in arm.runs if metric in r.before])
    after = spread([r.after[metric] for r in arm.runs if metric in r.after])
    rise = spread(_rises(arm, metric))
    return Change(before, after, rise[0] if rise else None)


def _rises(arm: Arm, metric: str) -> list[float]:
    """Of each run that has the figure before and after; where one is no number, NaN."""
    both = [r for r in arm.runs if metric in r.before and metric in r.after]
    return [r.after[metric] - r.before[metric] for r in both]


def beside_paper(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The rows of the table that holds MM-UPT's gains against those of its paper; none without a run
    of MM-UPT.

    A run is one of MM-UPT if it has an arm of that name, and then all its arms are in the table; after
    them come arms that only the paper has. Each row: "number" of the arm, None if it was not run,
    "name", "runs", "gain" and "range" (least, greatest) of the held-out mean, in points of 100 and None
    where unknown, and "paper": for each of `published.DATA_SETS` (average, gain), empty where the paper
    prints none.
    """
    ours = {_experiment(run) for arm in arms for run in arm.runs if run.arm == "mm_upt"}
    rows, met = [], set[str]()
    for number, arm in enumerate(arms):
        if not all(_experiment(run) in ours for run in arm.runs):
            continue
        name = arm.runs[0].arm
        met.add(name)
        gains = [100 * rise for rise in _rises(arm, "mean") if np.isfinite(rise)]
        rows.append(
            {
                **{"number": number, "name": arm.label, "runs": len(arm.runs)},
                "gain": float(np.mean(gains)) if gains else None,
                "range": (min(gains), max(gains)) if len(gains) > 1 else None,
                "paper": published.gains(name),
            }
        )
    if rows:
        absent = [name for name in published.AVERAGES if name not in met]
        unknown = {"number": None, "runs": 0, "gain": None, "range": None}
        rows += [{**unknown, "name": name, "paper": published.gains(name)} for name in absent]
    return rows


def _experiment(run: Run) -> str:
    """The directory of the experiment that a run is an arm of."""
    return run.path.rsplit("/arms/", 1)[0]


def _shown(run: Run) -> list[tuple[int, list[dict[str, Any]]]]:
    """The steps and rows that the page shows, with their pictures."""
    folder = epath.Path(run.path)
    return [(step, [pictured(folder, r) for r in rows[:ROWS_SHOWN]]) for step, rows in run.samples]


def findings(arms: Sequence[Arm]) -> list[tuple[int, str, str]]:
    """(arm number, its name, one plain sentence) for every arm whose held-out mean is known."""
    told = []
    for number, arm in enumerate(arms):
        figure = change(arm, "mean")
        if figure.before is None or figure.after is None or figure.rise is None:
            continue
        before, after, rise = figure.before[0], figure.after[0], figure.rise
        verb = "rose" if rise > 0.005 else "fell" if rise < -0.005 else "stayed"
        text = f"held-out mean accuracy {verb}"
        text += f" at {after:.3f}" if verb == "stayed" else f" from {before:.3f} to {after:.3f}"
        curve = _curve(arm, number, "eval/mean")
        if curve is not None:
            peak = int(np.nanargmax(curve.mean))
            if (
                curve.mean[peak] - after > COLLAPSE_DROP
                and curve.mean[peak] - before > COLLAPSE_DROP
            ):
                text += f", after a peak of {curve.mean[peak]:.3f} at step {curve.steps[peak]:g}"
        if len(arm.runs) > 1:
            text += f" (mean of {len(arm.runs)} runs)"
        told.append((number, arm.label, text + "."))
    return told


def sections(arms: Sequence[Arm]) -> list[tuple[str, str, list[dict[str, str]]]]:
    """(heading, introduction, charts) for each section that has a chart."""
    known = {chart.metric for chart in HELD_OUT}
    logged = sorted({name for arm in arms for run in arm.runs for name in run.curves})
    others = tuple(
        Chart(name, "Held-out " + name[5:].replace("_", " "), "")
        for name in logged
        if name.startswith("eval/") and name not in known
    )
    plan = (
        ("Did it get better?", "Measured on held-out problems.", HELD_OUT + others),
        ("What it was told, and whether that was true", "", SIGNAL),
        ("How the policy moved", "", POLICY),
        ("Speed", "", SPEED),
    )
    made = []
    for heading, introduction, wanted in plan:
        charts = [drawn for chart in wanted if (drawn := _draw(arms, chart))]
        if heading == "Speed" and (times := _draw_times(arms)):
            charts.insert(0, times)
        if charts:
            made.append((heading, introduction, charts))
    return made


def _curve(arm: Arm, number: int, metric: str) -> figures.Curve | None:
    found = [run.curves[metric] for run in arm.runs if metric in run.curves]
    return figures.over_runs(printable(arm.label), number, found) if found else None


def _draw(arms: Sequence[Arm], chart: Chart) -> dict[str, str] | None:
    curves = [c for i, arm in enumerate(arms) if (c := _curve(arm, i, chart.metric)) is not None]
    if not curves:
        return None
    name = "".join(c if c.isalnum() else "-" for c in chart.metric)
    # a reward may be of another kind than 0 to 1; then its own range is the honest one
    inside = all(np.nanmin(c.low) >= 0 and np.nanmax(c.high) <= 1 for c in curves)
    svg = figures.line_chart(name, curves, chart.fraction and inside)
    return {"id": name, "title": chart.title, "says": chart.says, "key": chart.metric, "svg": svg}


def _draw_times(arms: Sequence[Arm]) -> dict[str, str] | None:
    logged = {name for arm in arms for run in arm.runs for name in run.curves}
    names = sorted(n for n in logged if n.startswith("time/") and n not in NOT_PARTS)
    if not names:
        return None
    bars = {}
    for arm in arms:
        bars[printable(arm.label)] = {
            name[5:]: float(
                np.mean([np.nansum(r.curves[name][1]) if name in r.curves else 0 for r in arm.runs])
            )
            for name in names
        }
    svg = figures.stacked_bars("time", bars, [name[5:] for name in names], "s")
    says = "Seconds over the whole run" + (", mean of the runs." if _several(arms) else ".")
    return {"id": "time", "title": "Where the time went", "says": says, "key": "time/*", "svg": svg}


def _several(arms: Sequence[Arm]) -> bool:
    return any(len(arm.runs) > 1 for arm in arms)


def side_by_side(arms: Sequence[Arm], of) -> list[tuple[str, list[tuple[str, str]]]]:
    """(name, [(arms, value)]) for every name that any run has; [("", value)] where all agree."""
    found: list[tuple[str, Mapping[str, Any]]] = [(a.label, of(r)) for a in arms for r in a.runs]
    names = dict.fromkeys(name for _, values in found for name in values)
    table = []
    for name in names:
        by_value: dict[str, list[str]] = {}
        for label, values in found:
            shown = _value(values[name]) if name in values else "(absent)"
            by_value.setdefault(shown, []).append(label)
        cells = [(", ".join(dict.fromkeys(who)), value) for value, who in by_value.items()]
        table.append((name, [("", cells[0][1])] if len(cells) == 1 else cells))
    return table


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return {None: "none", True: "yes", False: "no"}[value] if _is_flag(value) else str(value)


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def cut(text: str, keep_end: bool = False) -> str:
    """At most 1,500 characters; of a prompt its end, where the question is."""
    if len(text) <= TEXT_SHOWN:
        return text
    left_out = f"[{len(text) - TEXT_SHOWN:,} more characters]"
    return f"{left_out} … {text[-TEXT_SHOWN:]}" if keep_end else f"{text[:TEXT_SHOWN]} … {left_out}"


def printable(text: str) -> str:
    """`text` with what HTML and UTF-8 cannot hold (control characters, half surrogates) as �."""
    return "".join(
        "�"
        if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000
        else c
        for c in text
    )
