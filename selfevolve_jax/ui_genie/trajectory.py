"""Trajectories: what an agent saw, wrote and did in one episode, and how they are kept.

    FOLDER/trajectories.jsonl       one line a trajectory, whole or not at all
    FOLDER/screenshots/HASH.png     each picture once, by its content; or in a folder above, which many
                                    folders of trajectories share

A record is the dataclass as JSON; `action` is as in actions.as_record. Paths may be remote (gs://…).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from selfevolve_jax.errors import UserError
from selfevolve_jax.run_dir import disk_errors, jsonable, write_bytes_atomic, write_text_atomic
from selfevolve_jax.ui_genie import actions
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.contract import View
from selfevolve_jax.ui_genie.environment import Element, State

TRAJECTORIES, SCREENSHOTS = "trajectories.jsonl", "screenshots"
_NAME = re.compile(r"[0-9a-f]{16}\.png")  # nothing else: a record must not lead out of its folder


@dataclass(frozen=True)
class Step:
    """One turn of the agent.

    screenshot: name of a PNG in FOLDER/screenshots: what was seen before the action.
    text: what the agent wrote; action: what it parsed to, None where it did not; failure: why then
      (actions.Failure.kind).
    score: the reward model's P(positive) of this action; label: the step's label, once it has one.
    """

    screenshot: str
    elements: tuple[Element, ...]
    text: str
    action: Action | None
    failure: str | None = None
    score: float | None = None
    label: bool | None = None


@dataclass(frozen=True)
class Trajectory:
    """One episode, from the seed's first screen to `final`, the last one seen (a screenshot's name).

    done: the environment ended the episode. success: the environment's own verdict, None where it
      gives none. outcome_score: the reward model's, of terminate(success) on the last screen.
    source: provenance: round, arm, how, policy, ids of parents; plain JSON values.
    """

    id: str
    task: str
    seed: int
    goal: str
    frame: Frame
    steps: tuple[Step, ...]
    final: str
    final_elements: tuple[Element, ...]
    done: bool
    success: bool | None
    outcome_score: float | None = None
    source: Mapping[str, Any] = field(default_factory=dict)


def keep(png: bytes) -> str:
    """The name of a screenshot by its content (64 bits of SHA-256), as in Step.screenshot."""
    return hashlib.sha256(png).hexdigest()[:16] + ".png"


def names(trajectory: Trajectory) -> tuple[str, ...]:
    """Names of its screenshots: before each step, then the last one. Length: steps + 1."""
    return (*(step.screenshot for step in trajectory.steps), trajectory.final)


def write_screenshots(folder: str | os.PathLike[str], screenshots: Mapping[str, bytes]) -> set[str]:
    """Writes those that FOLDER/screenshots does not have yet; what is there is not rewritten.

    screenshots: PNG by name. Returns the names that are there now. ValueError for a name that is not
    of its content; DiskError."""
    kept = epath.Path(folder) / SCREENSHOTS
    with disk_errors(kept):
        kept.mkdir(parents=True, exist_ok=True)
    # A bucket has no empty folders, whatever was made.
    there = {path.name for path in kept.iterdir()} if kept.exists() else set()
    for name, png in screenshots.items():
        if name != keep(png):
            raise ValueError(f"screenshot {name} is not named by its content ({keep(png)})")
        if name not in there:
            write_bytes_atomic(kept / name, png)
    return there | screenshots.keys()


def write(
    folder: str | os.PathLike[str],
    trajectories: Sequence[Trajectory],
    screenshots: Mapping[str, bytes],
    shared: str | os.PathLike[str] | None = None,
) -> None:
    """Writes the folder: first the screenshots, then trajectories.jsonl in one piece, in place of an
    older one. So whatever trajectories.jsonl names is there, whenever it is read.

    screenshots: PNG by name; those of an earlier write need not be given again. shared: a folder above,
      whose `screenshots` are written in place of the folder's own.

    Raises ValueError for an id that is there twice or a screenshot that is nowhere; DiskError.
    """
    folder = epath.Path(folder)
    _refuse_twins(trajectory.id for trajectory in trajectories)
    there = write_screenshots(folder if shared is None else shared, screenshots)
    for trajectory in trajectories:
        for name in names(trajectory):
            if name not in there:
                raise ValueError(f"trajectory {trajectory.id}: no screenshot {name} given or kept")
    write_lines(folder / TRAJECTORIES, (as_record(trajectory) for trajectory in trajectories))


def read(folder: str | os.PathLike[str]) -> list[Trajectory]:
    """What `write` wrote, in its order. UserError naming file and line for what is missing or
    damaged. Screenshots are looked at by `view_at` alone."""
    path = epath.Path(folder) / TRAJECTORIES
    lines = read_lines(path, "pass a folder of trajectories")
    found = [from_record(where, record) for where, record in lines]
    try:
        _refuse_twins(trajectory.id for trajectory in found)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Fix: remove one of them.") from None
    return found


def view_at(
    trajectory: Trajectory, i: int, screenshots_folder: str | os.PathLike[str], images: int = 1
) -> View:
    """What could be seen before step i; i = len(steps) is the last screen, with the whole history.

    screenshots_folder: where the PNGs are (FOLDER/screenshots).
    images: how many earlier screenshots come before the current one, where there are as many.
    A step that did not parse never happened on the screen, so the history has no word of it.

    UserError naming the trajectory and the file where a screenshot is missing.
    """
    if not 0 <= i <= len(trajectory.steps):
        raise ValueError(f"{trajectory.id} has {len(trajectory.steps)} steps; there is no view {i}")
    what = f"trajectory {trajectory.id}"
    pngs = (read_png(what, screenshots_folder, name) for name in seen_at(trajectory, i, images))
    return View(
        goal=trajectory.goal,
        history=tuple(done.action_desc for done in done_before(trajectory, i)),
        screenshots=tuple(pngs),
        frame=trajectory.frame,
        elements=elements_at(trajectory, i),
    )


def seen_at(trajectory: Trajectory, i: int, images: int | None = None) -> tuple[str, ...]:
    """Names of the screenshots of the view before step i, the current one last: at most `images`
    earlier ones (None: all), each of a step that is in the history."""
    earlier = [step.screenshot for step in trajectory.steps[:i] if step.action is not None]
    first = 0 if images is None else max(0, len(earlier) - images)
    return (*earlier[first:], names(trajectory)[i])


def elements_at(trajectory: Trajectory, i: int) -> tuple[Element, ...]:
    """The elements on the screen before step i; i = len(steps): on the last one."""
    last = i == len(trajectory.steps)
    return trajectory.final_elements if last else trajectory.steps[i].elements


def outcome_at(trajectory: Trajectory) -> int:
    """The step before which the outcome is judged: the last, where the agent terminated or wrote
    nothing that parsed; else the end. So no claim of its own is in the history that it is judged by,
    and the screen is the last one in every case."""
    n = len(trajectory.steps)
    if not n:
        return 0
    last = trajectory.steps[-1].action
    return n - 1 if last is None or last.action == "terminate" else n


def done_before(trajectory: Trajectory, i: int) -> tuple[Action, ...]:
    """The actions before step i; a step that did not parse has none."""
    return tuple(step.action for step in trajectory.steps[:i] if step.action is not None)


def state_at(trajectory: Trajectory, i: int) -> State:
    """Where the episode was before step i: replaying it leads there (i = len(steps): to its end)."""
    return State(trajectory.task, trajectory.seed, done_before(trajectory, i))


def as_record(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as JSON values."""
    record = {
        field.name: getattr(trajectory, field.name) for field in dataclasses.fields(trajectory)
    }
    return jsonable(record | {"steps": [_step_record(step) for step in trajectory.steps]})


def from_record(where: str, record: Mapping[str, Any]) -> Trajectory:
    """What `as_record` wrote. UserError, beginning with `where`, names a field that is wrong."""
    refuse_unknown(where, record, Trajectory)
    steps = take(where, record, "steps", list)
    return Trajectory(
        id=take(where, record, "id", str),
        task=take(where, record, "task", str),
        seed=take(where, record, "seed", int),
        goal=take(where, record, "goal", str),
        frame=take_frame(where, record, "frame"),
        steps=tuple(_step(f"{where}, step {i}", step) for i, step in enumerate(steps)),
        final=screenshot_name(where, record, "final"),
        final_elements=elements_of(where, record, "final_elements"),
        done=take(where, record, "done", bool),
        success=take(where, record, "success", bool, None),
        outcome_score=take(where, record, "outcome_score", float, int, None),
        source=take(where, record, "source", dict),
    )


def write_lines(path: epath.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all. ASCII, so that no text of a page can break a line."""
    text = "".join(json.dumps(jsonable(record)) + "\n" for record in records)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(path, text)


def read_lines(path: epath.Path, fix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE line 3", object) for each line. UserError; `fix` is what to do where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist. Fix: {fix}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Fix: restore the file.") from error
    for number, line in enumerate(lines, 1):
        where = f"{path} line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is damaged: {error}. Fix: mend or remove it.") from error
        if not isinstance(record, dict):
            raise UserError(f"{where} is no JSON object. Fix: mend or remove it.")
        yield where, record


def take(where: str, record: Mapping[str, Any], key: str, *kinds: type | None) -> Any:
    """record[key], if it is of exactly one of these types (true is no int here). UserError."""
    if key not in record:
        raise UserError(f"{where} has no {key!r}. Fix: mend or remove it.")
    value = record[key]
    if (None if value is None else type(value)) not in kinds:
        said = " or ".join("null" if kind is None else kind.__name__ for kind in kinds)
        raise UserError(f"{where}: {key!r} is {_short(value)}, not {said}. Fix: mend or remove it.")
    return value


def take_action(where: str, record: Mapping[str, Any], key: str) -> Action | None:
    """The action of a record, None where it is null. UserError."""
    value = take(where, record, key, dict, None)
    try:
        return None if value is None else actions.from_record(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def screenshot_name(where: str, record: Mapping[str, Any], key: str) -> str:
    """A screenshot's name, HASH.png. UserError."""
    name = take(where, record, key, str)
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: {key!r} is {_short(name)}, not HASH.png. Fix: mend or remove it."
        )
    return name


def elements_of(where: str, record: Mapping[str, Any], key: str) -> tuple[Element, ...]:
    """A list of elements. UserError."""
    found = []
    for i, element in enumerate(take(where, record, key, list)):
        place = f"{where}, {key} {i}"
        if not isinstance(element, dict):
            raise UserError(f"{place} is {_short(element)}, not an object. Fix: mend or remove it.")
        refuse_unknown(place, element, Element)
        box = take(place, element, "box", list)
        if len(box) != 4 or any(type(side) is not int for side in box):
            raise UserError(f"{place}: 'box' is {_short(box)}, not four whole numbers.")
        found.append(
            Element(
                kind=take(place, element, "kind", str),
                text=take(place, element, "text", str),
                box=(box[0], box[1], box[2], box[3]),
                focused=take(place, element, "focused", bool),
                checked=take(place, element, "checked", bool, None),
            )
        )
    return tuple(found)


def take_frame(where: str, record: Mapping[str, Any], key: str) -> Frame:
    """A frame of a record. UserError."""
    frame = take(where, record, key, dict)
    refuse_unknown(where, frame, Frame)
    width, height = take(where, frame, "width", int), take(where, frame, "height", int)
    try:
        return Frame(width, height)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def refuse_unknown(where: str, record: Mapping[str, Any], of: type) -> None:
    """UserError for fields that the dataclass `of` does not have."""
    unknown = sorted(record.keys() - {field.name for field in dataclasses.fields(of)})
    if unknown:
        raise UserError(f"{where} has unknown fields {', '.join(unknown)}. Fix: mend or remove it.")


def read_png(what: str, folder: str | os.PathLike[str], name: str) -> bytes:
    """A screenshot. UserError that says for what."""
    path = epath.Path(folder) / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{what}: screenshot {path} cannot be read: {error}. "
            "Fix: restore the folder of screenshots, or make the trajectories anew."
        ) from error


def _step_record(step: Step) -> dict[str, Any]:
    record = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    return record | {"action": None if step.action is None else actions.as_record(step.action)}


def _step(where: str, record: Any) -> Step:
    if not isinstance(record, dict):
        raise UserError(f"{where} is {_short(record)}, not an object. Fix: mend or remove it.")
    refuse_unknown(where, record, Step)
    return Step(
        screenshot=screenshot_name(where, record, "screenshot"),
        elements=elements_of(where, record, "elements"),
        text=take(where, record, "text", str),
        action=take_action(where, record, "action"),
        failure=take(where, record, "failure", str, None),
        score=take(where, record, "score", float, int, None),
        label=take(where, record, "label", bool, None),
    )


def _refuse_twins(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise ValueError(f"two trajectories have the id {id!r}")
        seen.add(id)


def _no_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _short(value: Any) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
