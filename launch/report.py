"""`selfevolve report`: one HTML page from run directories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.report import replicate
from selfevolve_jax.report.html import write_report


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page from run directories; several seeds of an arm become a band.

    runs: run directories. out: the page, or a folder for it; by default RUN/report.html for one
    run and ./report.html for several. Of one `srt replicate`: a folder for its figures and its table
    as Markdown, such as docs.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None


def report(options: Report) -> None:
    """Prints the page's path."""
    if not options.runs:
        raise UserError("report needs at least one run directory: selfevolve report RUN.")
    if len(options.runs) == 1 and _is_replication(options.runs[0]):
        run = options.runs[0]
        print(replicate.write(run) if options.out is None else _write_docs(run, options.out))
        return
    print(write_report(list(options.runs), options.out))


def _write_docs(run: str, out: str) -> epath.Path:
    if out.endswith(".html"):
        raise UserError(
            f"out={out}: the page of a replication is always {run}/report.html; out is a folder for "
            "its figures and table. Leave it out, or give a folder."
        )
    return replicate.write_docs(run, out)[0]


def _is_replication(run: str) -> bool:
    path = epath.Path(run)
    return (path / run_dir.CONFIG).exists() and "seeds" in run_dir.read_config(path)["config"]
