"""`selfevolve report`: one HTML page from run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from etils import epath

from selfevolve_jax import remote, run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.report import dgm_run, gui_run, replicate
from selfevolve_jax.report.html import write_report
from selfevolve_jax.report.trajectories import write_trajectories_page
from selfevolve_jax.ui_genie import inspect_export, trajectory


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page from run directories; several seeds of an arm become a band.

    runs: run directories. out: the page, or a folder for it; by default RUN/report.html for one
    run and ./report.html for several. Of one `srt replicate`: a folder for its figures and its table
    as Markdown, such as docs.

    Of UI-Genie also folders with trajectories, as RUN/arms/ARM/round-1/explored: a page that shows
    them step by step, by default ./trajectories.html. With an out that ends in .eval: a log of Inspect,
    which `inspect view` shows (extra `inspect`); of a run, its last test.

    watch: of a DGM run, also while it goes on: every so many seconds the page is written anew if there
    is news, and a browser that shows it loads it again. Until the run is over, or Ctrl-C.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    watch: int | None = None

    def __post_init__(self) -> None:
        if self.watch is not None and not 1 <= self.watch <= 86_400:
            raise UserError(f"watch={self.watch} is no number of seconds from 1 to 86400.")


def report(options: Report) -> None:
    """Prints the page's path."""
    if not options.runs:
        raise UserError("report needs at least one run directory: selfevolve report RUN.")
    for path in (*options.runs, *([options.out] if options.out else [])):
        remote.check(path)
    if any(_is_dgm(run) for run in options.runs):
        _write_dgm(options)
        return
    if options.watch is not None:
        raise UserError(
            f"watch={options.watch}: {', '.join(options.runs)} is no run of DGM, and only such a run "
            "is watched. Fix: leave it out."
        )
    played = [_trajectories(run) for run in options.runs]
    if any(played):
        print(_write_trajectories(options, played))
        return
    if len(options.runs) == 1 and _is_replication(options.runs[0]):
        run = options.runs[0]
        print(replicate.write(run) if options.out is None else _write_docs(run, options.out))
        return
    print(write_report(list(options.runs), options.out))


def _write_dgm(options: Report) -> None:
    run, *others = options.runs
    if others:
        raise UserError(
            f"report shows one DGM run a page, and there are {len(options.runs)}. "
            "Fix: one at a time, each with an --out of its own if need be."
        )
    if options.watch is None:
        print(dgm_run.write_page(run, options.out))
    else:
        dgm_run.watch(
            *(run, options.out, options.watch), wrote=lambda path: print(path, flush=True)
        )


def _trajectories(path: str) -> list[epath.Path]:
    """Folders of trajectories that a UI-Genie run, or a folder that is no run, stands for."""
    folder = epath.Path(path)
    if _config(folder) is None:
        chunks = [folder, *sorted(folder.glob("*"))]  # a round's are in chunks
        return [each for each in chunks if (each / trajectory.TRAJECTORIES).exists()]
    return gui_run.last_tests(folder) if _is_ui_genie(folder) else []


def _write_trajectories(options: Report, played: Sequence[Sequence[epath.Path]]) -> epath.Path:
    """played: of each of options.runs."""
    if not all(played):
        none, some = (options.runs[[*map(bool, played)].index(has)] for has in (False, True))
        raise UserError(f"{none} holds no trajectories, and {some} does. Fix: one kind at a time.")
    folders = [folder for each in played for folder in each]
    if options.out is not None and options.out.endswith(".eval"):
        return inspect_export.export(folders, options.out)
    if len(options.runs) == 1 and _is_ui_genie(epath.Path(options.runs[0])):
        return gui_run.write_page(options.runs[0], options.out)
    return write_trajectories_page(folders, options.out or ".")


def _write_docs(run: str, out: str) -> epath.Path:
    if out.endswith(".html"):
        raise UserError(
            f"out={out}: the page of a replication is always {run}/report.html; out is a folder for "
            "its figures and table. Leave it out, or give a folder."
        )
    return replicate.write_docs(run, out)[0]


def _is_replication(run: str) -> bool:
    return "seeds" in (_config(epath.Path(run)) or ())


def _is_ui_genie(folder: epath.Path) -> bool:
    return "exploration" in (_config(folder) or ())


def _is_dgm(run: str) -> bool:
    folder = epath.Path(run)
    return dgm_run.is_dgm(folder, _config(folder) or {})


def _config(folder: epath.Path) -> dict[str, Any] | None:
    """A run's configuration; None for a folder that is no run."""
    if not (folder / run_dir.CONFIG).exists():
        return None
    return run_dir.read_config(folder)["config"]
