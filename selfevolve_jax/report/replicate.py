"""The report of `selfevolve srt replicate`: what the paper says, what was seen here, and in pictures.

One page, RUN/report.html, that needs no network and no JavaScript; and the same as Markdown with SVG
files, to be committed in docs/. Reads run directories only. Only process 0 may call `write` and
`write_docs`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.report.html import _value, printable
from selfevolve_jax.report.replication import (
    ARMS,
    SEEDS,
    Replication,
    Series,
    collect,
    numbers,
    title,
)
from selfevolve_jax.report.replication_figures import CAPTIONS, figures
from selfevolve_jax.report.replication_story import story
from selfevolve_jax.report.replication_verdicts import Row, verdicts

__all__ = [
    "Replication",
    "Row",
    "Series",
    "arms_table",
    "collect",
    "command",
    "figures",
    "verdicts",
    "write",
    "write_docs",
]

READING = (
    "Accuracy is the mean of samples on held-out problems. Base: at step 0. Peak: the highest later "
    "evaluation. Gain: peak less base. Final: of the policy that the arm gave back. Collapsed: final "
    "at or under base plus half of the gain. Rewards, labels, KL and entropy are means of five "
    "training steps. Several figures in a row are of {seeds} in order. Agrees: “yes” where the claim "
    "holds on as many seeds as it names, “partly” where on some or in part, “no” where on none. The "
    "paper is arXiv 2505.21444; its models and problems are other ones, so what is compared is the "
    "shape, not the height."
)
BANDS = "Lines are the median over the seeds, bands go from the least to the greatest."


def write(run: str | os.PathLike[str]) -> epath.Path:
    """Writes RUN/report.html and returns its path; a run in progress is reported as far as it is.

    The same directory gives the same bytes. Raises UserError for missing or damaged inputs, DiskError
    if the disk refuses.
    """
    import jinja2

    data = collect(run)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfevolve_jax.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    drawn = figures(data)
    page = environment.get_template("replicate.html.j2").render(
        run=data.run,
        command=command(data),
        reading=_reading(data),
        bands=BANDS,
        missing=data.missing,
        rows=verdicts(data),
        arms=arms_table(data),
        figures=[(name, CAPTIONS[name], svg) for name, svg in drawn.items()],
        made=_made(data),
        config=[
            (name, _value(value)) for name, value in run_dir.flatten(data.record["config"]).items()
        ],
    )
    path = epath.Path(run) / run_dir.REPORT
    run_dir.write_text_atomic(path, page)
    return path


def write_docs(run: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[epath.Path]:
    """Writes FOLDER/replicate.md and FOLDER/replicate-NAME.svg, and returns their paths, the page
    first. Made if it is not there; other files in it are left alone. Raises as `write` does."""
    data, folder = collect(run), epath.Path(folder)
    drawn = {f"replicate-{name}.svg": svg for name, svg in figures(data).items()}
    page = folder / "replicate.md"
    with run_dir.disk_errors(page):
        folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():  # first, so that the page never links what is not there
        run_dir.write_text_atomic(folder / name, svg)
    run_dir.write_text_atomic(page, _markdown(data, list(drawn)))
    return [page, *(folder / name for name in drawn)]


def command(data: Replication) -> str:
    """What a person types to make this run, as far as the options are this report's business."""
    config = data.record["config"]
    words = ["uv run selfevolve srt replicate"]
    if config.get("quick"):
        words.append("--quick")
    elif config.get("seeds", SEEDS) != SEEDS:
        words.append(f"--seeds {config['seeds']}")
    if config.get("seed", 0):
        words.append(f"--seed {config['seed']}")
    arms = config.get("arms", ARMS)
    if set(arms) != set(ARMS):
        words.append("--arms " + " ".join(arms))
    return " ".join(words)


@dataclass(frozen=True)
class ArmRow:
    """One arm in words: of a figure its median over the seeds that ended, and the range."""

    title: str
    seeds: int
    base: str
    peak: str
    step: str
    final: str
    majority: str
    greedy: str


def arms_table(data: Replication) -> list[ArmRow]:
    """A row for each arm that has ended on a seed."""
    rows = []
    for arm in data.arms:
        s = story(data, arm)
        if s is None:
            continue
        before, after = data.before[arm], data.after[arm]
        rows.append(
            ArmRow(
                title=title(arm),
                seeds=int(s.ended.sum()),
                base=_spread(s.base[s.ended]),
                peak=_spread(s.peak[s.ended]),
                step=_spread(s.peak_step[s.ended], ".0f"),
                final=_spread(s.final[s.ended]),
                **{
                    name: f"{_spread(before[name][s.ended])} → {_spread(after[name][s.ended])}"
                    for name in ("majority", "greedy")
                },
            )
        )
    return rows


def _spread(values: np.ndarray, form: str = ".3f") -> str:
    values = values[np.isfinite(values)]
    if not values.size:
        return "–"
    middle, low, high = (format(f(values), form) for f in (np.median, np.min, np.max))
    return middle if low == high else f"{middle} ({low} to {high})"


def _made(data: Replication) -> list[tuple[str, str]]:
    """(name, value): how long it took, on what, with which versions."""
    record: Mapping[str, Any] = data.record
    commit = record.get("git_revision")
    revision = f"{commit}{' with local changes' if record.get('git_dirty') else ''}"
    minutes = f"{data.seconds:,.0f} s ({data.seconds / 60:.0f} min)"
    return [
        ("time", f"{minutes}, of the seeds that have ended" if data.missing else minutes),
        ("git revision", revision if commit else "none"),
        *((name, _value(value)) for name, value in (record.get("versions") or {}).items()),
    ]


def _reading(data: Replication) -> str:
    return READING.format(seeds=numbers(data.seeds))


def _markdown(data: Replication, images: Sequence[str]) -> str:
    lines = [
        "# SRT's rise, its collapse and the cures, replicated",
        *("", f"Made by `{command(data)}`.", "", _reading(data), ""),
    ]
    if data.missing:
        lines += ["Not there yet:", "", *(f"- {_cell(said)}" for said in data.missing), ""]
    lines += ["## What the paper says, and what was seen here", ""]
    lines += _table(
        ("claim", "paper", "seen here", "agrees?"),
        [(r.claim, r.paper, r.seen, f"**{r.agrees}**") for r in verdicts(data)],
    )
    if arms := arms_table(data):
        lines += ["", "## Arms", "", "Median over the seeds (least to greatest).", ""]
        lines += _table(
            *(("arm", "seeds", "base", "peak", "at step", "final", "majority", "greedy"),),
            [tuple(map(str, vars(row).values())) for row in arms],
        )
    lines += ["", "## Figures", "", BANDS]
    for image in images:
        caption = CAPTIONS[image.removeprefix("replicate-").removesuffix(".svg")]
        lines += ["", f"**{caption.title}.** {caption.says}", "", f"![{caption.title}]({image})"]
    lines += ["", "## Made with", ""]
    lines += _table(("name", "value"), _made(data))
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]


def _cell(text: str) -> str:
    """Text that stays in its cell, and is no HTML."""
    text = printable(text).replace("\n", " ").replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("<", "&lt;")
