"""`selfevolve report`: one HTML page from run directories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from selfevolve_jax.errors import UserError
from selfevolve_jax.report.html import write_report


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page from run directories; several seeds of an arm become a band.

    runs: run directories. out: the page, or a folder for it; by default RUN/report.html for one
    run and ./report.html for several.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None


def report(options: Report) -> None:
    """Prints the page's path."""
    if not options.runs:
        raise UserError("report needs at least one run directory: selfevolve report RUN.")
    print(write_report(list(options.runs), options.out))
