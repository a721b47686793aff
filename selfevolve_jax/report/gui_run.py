"""The page of a UI-Genie run, and which of its episodes it shows. No jax: `selfevolve report` starts at
once."""

from __future__ import annotations

from typing import Any

from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.report.trajectories import write_trajectories_page


def write_page(folder: epath.PathLike, out: epath.PathLike | None = None) -> epath.Path:
    """Writes the page of a run (report.html in its folder, or `out`, an .html file or a folder for it)
    and returns its path: the figures by round, and the last round's episodes on held-out seeds.
    UserError for a run none of whose arms has ended."""
    folder = run_dir.absolute(folder)
    figures = [
        {"arm": arm, "round": number, **each}
        for arm, told in _summary(folder)["arms"].items()
        for number, each in enumerate(told["rounds"])
    ]
    return write_trajectories_page(
        last_tests(folder), folder / run_dir.REPORT if out is None else out, figures
    )


def last_tests(folder: epath.PathLike) -> list[epath.Path]:
    """The folders of trajectories of the last round's test, arm by arm. UserError as `write_page`."""
    folder = run_dir.absolute(folder)
    return [
        place
        for arm, told in _summary(folder)["arms"].items()
        for place in sorted(
            (folder / "arms" / arm / f"round-{len(told['rounds']) - 1}" / "test").iterdir()
        )
    ]


def _summary(folder: epath.Path) -> dict[str, Any]:
    if not (folder / run_dir.SUMMARY).exists():
        raise UserError(
            f"no arm of {folder} has ended yet. Fix: go on with it (--resume), or pass a folder of "
            "trajectories in it."
        )
    return run_dir.read_summary(folder)
