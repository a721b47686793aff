"""What an agent learns from that others demonstrated: UI-Genie's published agent data (`agent_rows`)
and AndroidControl's train split, as examples for `agent.sft_batches`.

Coordinates are of the frame that the policy sees the screen in, as `contract` wants it, and as it is
asked later. Pictures are read when their turn comes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from etils import epath
from PIL import Image

from selfevolve_jax import run_dir, sampling_job
from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import actions, agent_rows, android_control, trajectory
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.agent import Example
from selfevolve_jax.ui_genie.android_control import Setting
from selfevolve_jax.ui_genie.contract import View
from selfevolve_jax.ui_genie.environment import Element

FrameOf = Callable[[Frame], Frame]


@dataclass(frozen=True)
class Shown:
    """A demonstrated step. screenshot: its file, of any size. frame: of coordinates and elements."""

    goal: str
    history: tuple[str, ...]
    screenshot: epath.Path
    frame: Frame
    action: Action
    elements: tuple[Element, ...] = ()


def published(
    path: str | os.PathLike[str], frame_of: FrameOf, counts: Counter[str]
) -> Iterator[Shown]:
    """The usable rows of a file in UI-Genie-Agent-16k's format; relative paths of pictures start at the
    file's folder.

    counts: as `agent_rows.read` says, and "rescaled": a row's coordinates are of another frame than
    the one that the policy sees its screenshot in, and were scaled to it. UserError for what `read`
    refuses, and naming the row whose picture is missing or none: every one is opened here.
    """
    folder = epath.Path(path).parent
    for row in agent_rows.read(path, frame_of, counts):
        screenshot = folder / row.image
        frame, action = frame_of(_size(row.where, screenshot)), row.action
        if frame != row.frame and action.coordinate is not None:
            point = android_control.scaled_point(*action.coordinate, row.frame, frame)
            action = replace(action, coordinate=point)
            counts["rescaled"] += 1
        yield Shown(row.goal, row.history, screenshot, frame, action)


def demonstrated(
    folder: str | os.PathLike[str],
    settings: Sequence[Setting],
    frame_of: FrameOf,
    kept: epath.Path,
    counts: Counter[str],
    elements: bool = False,
) -> Iterator[Shown]:
    """AndroidControl's train split, each step once for every setting.

    kept: where the screenshots are written, as PNGs by content, since a gzipped shard has no way to one
    of its records: about 45 GB of them. Those that are there already are not written again. elements:
    keep what is on the screen, which only the short style lists. counts, errors: as `android_control`;
    DiskError.
    """
    ids = android_control.split_ids(folder, "train")
    main = jax.process_index() == 0
    if main:
        with run_dir.disk_errors(kept):
            kept.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in kept.iterdir()} if kept.exists() else set()
    for episode in android_control.episodes(android_control.shards(folder), ids, counts):
        names = [trajectory.keep(png) for png in episode.screenshots]
        for name, png in zip(names, episode.screenshots, strict=True):
            if main and name not in there:
                run_dir.write_bytes_atomic(kept / name, png)
                there.add(name)
        for setting in settings:
            for row in android_control.rows(episode, setting, frame_of, counts):
                yield Shown(
                    row.asked,
                    row.history,
                    kept / names[row.step],
                    row.frame,
                    row.action,
                    row.elements if elements else (),
                )


def examples(steps: Iterable[Shown]) -> list[Example]:
    return [Example(partial(_view, step), (step.action,)) for step in steps]


def as_record(step: Shown) -> dict[str, Any]:
    """What tells a step from others, wherever its picture is kept."""
    return run_dir.jsonable(
        {
            "goal": step.goal,
            "history": step.history,
            "screenshot": step.screenshot.name,
            "frame": step.frame,
            "action": actions.as_record(step.action),
            "elements": step.elements,
        }
    )


def check_same(folder: epath.Path, steps: Sequence[Shown], counts: Mapping[str, Any]) -> None:
    """Writes FOLDER/data.json, what a training learns from; UserError if it began with other steps, as
    its next batch would then not be the one that would have come."""
    told = {"steps": sampling_job.fingerprint(map(as_record, steps)), "counts": counts}
    path = folder / "data.json"
    if path.exists():
        began = json.loads(path.read_text())["steps"]
        if began != told["steps"]:
            raise UserError(
                f"{folder} was begun with other data: {began['count']} steps, sha256 "
                f"{began['sha256']}, and now there are {told['steps']['count']}, sha256 "
                f"{told['steps']['sha256']}. Fix: give the same data, or another --out."
            )
    elif jax.process_index() == 0:
        run_dir.write_json_atomic(path, told)


def _view(step: Shown) -> View:
    png = trajectory.read_png("agent SFT", step.screenshot.parent, step.screenshot.name)
    return View(step.goal, step.history, (png,), step.frame, step.elements)


def _size(where: str, path: epath.Path) -> Frame:
    """A picture's size, from its head alone."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return Frame(*image.size)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{where}: image {path} cannot be read: {error}. Fix: put the images where the rows say, "
            "from the file's folder on."
        ) from error
