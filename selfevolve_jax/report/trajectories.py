"""One self-contained HTML page that shows a GUI agent's trajectories step by step: what it saw, where
it touched the screen, what it wrote, and what the reward model thought of it.

Reads folders of trajectories as ui_genie/trajectory.py keeps them, by their JSON alone:

    FOLDER/trajectories.jsonl       one line a trajectory
    FOLDER/screenshots/HASH.png     each picture once; or in the nearest folder above that has some
    FOLDER/../../judged.json        of a round's explored episodes: their outcomes' scores by the reward
                                    model that had learnt from them, which say what the agent learns

The page needs no network and no JavaScript. Texts of pages and models are shown as text, whatever
they hold.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.report.html import cut, printable
from selfevolve_jax.report.marks import marks, target
from selfevolve_jax.report.rounds import rounds_figure

FULL = 24  # trajectories shown step by step, where the caller names no other number
STEPS_SHOWN = 40  # of one trajectory
LARGEST, MOST_BYTES = (
    800,
    1 << 18,
)  # a picture with a longer side, or of more bytes, is shown smaller
LARGEST_SAFE = 50_000_000  # pixels that are decoded
LARGEST_FRAME = 100_000  # pixels of a side

NUMBER, TRUTH = (float, int, None), (bool, None)
TRAJECTORY = {
    **{"id": (str,), "task": (str,), "seed": (int,), "goal": (str,), "frame": (dict,)},
    **{"steps": (list,), "final": (str,), "done": (bool,), "success": TRUTH},
    **{"outcome_score": NUMBER, "source": (dict,)},
}
STEP = {
    **{"screenshot": (str,), "elements": (list,), "text": (str,), "action": (dict, None)},
    **{"failure": (str, None), "score": NUMBER, "label": TRUTH},
}
ACTION = {"action": (str,), "action_desc": (str,)}
ELEMENT = {"kind": (str,), "text": (str,), "box": (list,), "focused": (bool,)}
NAME = re.compile(r"[0-9a-f]{16}\.png")  # a record must not lead out of its folder


def write_trajectories_page(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    rounds: Sequence[Mapping[str, Any]] = (),
    full: int = FULL,
) -> epath.Path:
    """Writes the page and returns its path.

    folders: folders of trajectories, shown in this order.
    out: an .html file, or a directory to hold trajectories.html.
    rounds: figures by round, drawn on top if there are any (see rounds.rounds_figure).
    full: at most so many trajectories are shown step by step; all are counted in the table.

    The same folders give the same bytes. Raises UserError for a missing or damaged trajectories.jsonl
    (a picture that cannot be read is said on the page) and DiskError if the disk refuses.
    """
    path = epath.Path(out)
    if path.suffix != ".html":
        path = path / "trajectories.html"
    page = render([(folder, read_records(folder)) for folder in folders], rounds, full)
    with run_dir.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    run_dir.write_text_atomic(path, page)
    return path


def read_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of FOLDER/trajectories.jsonl. UserError naming file, line and field if one is not what
    the page needs."""
    path = epath.Path(folder) / "trajectories.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist. Fix: pass a folder of trajectories.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Fix: restore the file.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is damaged: {error}. Fix: mend or remove it.") from error
        _check_trajectory(where, record)
        records.append(record)
    return records


def judged_again(folder: str | os.PathLike[str]) -> dict[str, float]:
    """Outcome scores by trajectory's id, of the round's judged.json; none where there is none, as of
    tests and of arms whose reward model does not learn. UserError for a damaged file."""
    path = run_dir.absolute(folder).parent.parent / "judged.json"
    if not path.exists():
        return {}
    scores = run_dir.read_json(path, f"{path} is gone. Fix: run it again.")
    if any(type(score) not in (int, float) for score in scores.values()):
        raise UserError(f"{path} is damaged: a score is no number. Fix: restore the file.")
    return scores


def render(
    kept: Sequence[tuple[str | os.PathLike[str], Sequence[Mapping[str, Any]]]],
    rounds: Sequence[Mapping[str, Any]] = (),
    full: int = FULL,
) -> str:
    """The page, as text. kept: (folder, its records)."""
    every = [(epath.Path(folder), record) for folder, records in kept for record in records]
    shown = chosen([record for _, record in every], full)
    pictures = Pictures()
    again = {epath.Path(folder): judged_again(folder) for folder, _ in kept}
    cards = [
        _card(number, *every[index], again, pictures, len(kept) > 1)
        for number, index in enumerate(shown, 1)
    ]
    template = _template()
    values = {
        "paths": [os.fspath(folder) for folder, _ in kept],
        "table": summary([record for _, record in every], cards),
        "cards": cards,
        "total": len(every),
        "pictures": [picture for picture in pictures.kept.values() if picture.src],
        "picture_bytes": said_size(sum(len(p.src) for p in pictures.kept.values() if p.src)),
        "steps_shown": STEPS_SHOWN,
        "largest": LARGEST,
        "figure": rounds_figure(rounds) if rounds else None,
    }
    without = template.render(values, page_bytes="")  # the number itself is a few bytes more
    return template.render(values, page_bytes=said_size(len(without.encode())))


@functools.cache  # compiling it takes longer than filling it
def _template():
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
    return environment.get_template("trajectories.html.j2")


def chosen(records: Sequence[Mapping[str, Any]], full: int) -> list[int]:
    """Places of at most `full` of the records, in order: of each task and verdict the first, then of
    each the second, and so on, so that none crowds out another."""
    groups: dict[tuple[str, bool | None], list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault((record["task"], record["success"]), []).append(place)
    ranked = sorted(
        (rank, group, place)
        for group, places in enumerate(groups.values())
        for rank, place in enumerate(places)
    )
    return sorted(place for _, _, place in ranked[:full])


@dataclass(frozen=True)
class Row:
    """The trajectories of one task, counted. success and judged: how many succeeded, of how many with
    a verdict of the environment. steps, outcome: means; None where there is none. failures: steps that
    did not parse, by kind. shown: the cards of those shown step by step."""

    task: str
    episodes: int
    success: int
    judged: int
    steps: float | None
    outcome: float | None
    failures: list[tuple[str, int]]
    shown: list[dict[str, Any]]


def summary(records: Sequence[Mapping[str, Any]], cards: Sequence[dict[str, Any]]) -> list[Row]:
    """A row a task, by first appearance, and one of all where there are several tasks."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    rows = [
        _row(
            task,
            [record for record in records if record["task"] == task],
            [card for card in cards if card["task"] == task],
        )
        for task in tasks
    ]
    return [*rows, _row("all tasks", records, [])] if len(rows) > 1 else rows


def _row(task: str, records: Sequence[Mapping[str, Any]], shown: list[dict[str, Any]]) -> Row:
    verdicts = [record["success"] for record in records if record["success"] is not None]
    kinds = Counter(
        step["failure"] for record in records for step in record["steps"] if step["failure"]
    )
    return Row(
        *(task, len(records), sum(verdicts), len(verdicts)),
        steps=_mean(len(record["steps"]) for record in records),
        outcome=_mean(r["outcome_score"] for r in records if r["outcome_score"] is not None),
        failures=sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])),
        shown=shown,
    )


def _mean(values: Iterable[float]) -> float | None:
    there = list(values)
    return float(np.mean(there)) if there else None


def _card(
    number: int,
    folder: epath.Path,
    record: Mapping[str, Any],
    again: Mapping[epath.Path, Mapping[str, float]],
    pictures: Pictures,
    several: bool,
) -> dict[str, Any]:
    """What the template shows of one trajectory."""
    frame = (record["frame"]["width"], record["frame"]["height"])
    steps = [
        {
            "picture": pictures.of(folder, step["screenshot"]),
            "marks": marks(step, frame),
            "name": None if step["action"] is None else step["action"]["action"],
            "fields": _fields(step["action"] or {}),
            "desc": None if step["action"] is None else step["action"]["action_desc"],
            "over": _over(step),
            **{key: step[key] for key in ("text", "failure", "score", "label")},
        }
        for step in record["steps"][:STEPS_SHOWN]
    ]
    source = [(name, said(value)) for name, value in record["source"].items()]
    return {
        **{key: record[key] for key in ("id", "task", "goal", "success", "outcome_score", "done")},
        **{"anchor": f"t{number}", "seed": said(record["seed"]), "frame": frame, "steps": steps},
        "judged_again": again[folder].get(record["id"]),
        "more_steps": len(record["steps"]) - len(steps),
        "count": len(record["steps"]),
        "final": pictures.of(folder, record["final"]),
        "source": [("folder", os.fspath(folder)), *source] if several else source,
    }


def _fields(action: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, said(value)) for name, value in action.items() if name not in ACTION]


def _over(step: Mapping[str, Any]) -> str | None:
    element = target(step)
    if element is None:
        return None
    return f"{element['kind']} “{element['text']}”" if element["text"] else element["kind"]


def said(value: Any) -> str:
    """A JSON value as text; a string as it is."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "(nested too deep to show)"


def said_size(size: int) -> str:
    """Bytes as B, kB or MB, of 1000."""
    for factor, unit in ((1_000_000, "MB"), (1000, "kB")):
        if size >= factor:
            return f"{size / factor:.{1 if size < 100 * factor else 0}f} {unit}"
    return f"{size} B"


# -- pictures


@dataclass(frozen=True)
class Picture:
    """src: a data: URI, None where there is none, and then `why`. anchor: what the page's parts call
    it. width, height: of what is in the URI, in pixels."""

    anchor: str = ""
    src: str | None = None
    width: int = 0
    height: int = 0
    why: str = ""


class Pictures:
    """The pictures of a page, each once, however many steps and folders show it."""

    def __init__(self) -> None:
        self.kept: dict[str, Picture] = {}
        self._read: dict[tuple[str, str], Picture] = {}
        self._places: dict[epath.Path, epath.Path] = {}

    def of(self, folder: epath.Path, name: str) -> Picture:
        key = (os.fspath(folder), name)
        if key not in self._read:
            self._read[key] = self._load(folder, name)
        return self._read[key]

    def _place(self, folder: epath.Path) -> epath.Path:
        if folder not in self._places:
            own = folder / "screenshots"
            above = (parent / "screenshots" for parent in folder.parents)
            self._places[folder] = next((p for p in (own, *above) if p.exists()), own)
        return self._places[folder]

    def _load(self, folder: epath.Path, name: str) -> Picture:
        if not NAME.fullmatch(name):
            return Picture(why=f"{name!r} is no screenshot's name")
        try:
            data = (self._place(folder) / name).read_bytes()
        except FileNotFoundError:
            return Picture(why=f"there is no screenshot {name} now")
        except Exception as error:  # a remote file system raises all kinds
            return Picture(why=f"screenshot {name} cannot be read ({error})")
        anchor = "p" + hashlib.sha256(data).hexdigest()[:16]
        if anchor not in self.kept:
            self.kept[anchor] = _encoded(anchor, name, data)
        return self.kept[anchor]


def _encoded(anchor: str, name: str, data: bytes) -> Picture:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            if opened.width * opened.height > LARGEST_SAFE:
                return Picture(why=f"screenshot {name} has too many pixels to open safely")
            opened.load()
            kind, image = "png", opened.convert("RGB")
    except Exception as error:  # decoders of damaged files raise all kinds
        return Picture(why=f"screenshot {name} is damaged or no PNG ({error})")
    if max(image.size) > LARGEST or len(data) > MOST_BYTES:
        image.thumbnail((LARGEST, LARGEST))
        file = io.BytesIO()
        image.save(file, "jpeg", quality=85)
        kind, data = "jpeg", file.getvalue()
    src = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(anchor, src, *image.size)


# -- the records that the page can show


def _check_trajectory(where: str, record: Any) -> None:
    _check(where, record, TRAJECTORY)
    frame = record["frame"]
    sides = [frame.get("width"), frame.get("height")]
    if not all(type(side) is int and 1 <= side <= LARGEST_FRAME for side in sides):
        raise _wrong(f"{where}: 'frame'", frame, f"two sides from 1 to {LARGEST_FRAME:,} pixels")
    for number, step in enumerate(record["steps"]):
        at = f"{where}, step {number}"
        _check(at, step, STEP)
        for i, element in enumerate(step["elements"]):
            _check(f"{at}, element {i}", element, ELEMENT)
            _check_integers(f"{at}, element {i}: 'box'", element["box"], 4)
        if step["action"] is not None:
            _check(f"{at}, action", step["action"], ACTION)
            if step["action"].get("coordinate") is not None:
                _check_integers(f"{at}: 'coordinate'", step["action"]["coordinate"], 2)


def _check(where: str, record: Any, fields: Mapping[str, tuple[type | None, ...]]) -> None:
    if not isinstance(record, dict):
        raise _wrong(where, record, "an object")
    for name, kinds in fields.items():
        if name not in record:
            raise UserError(f"{where} has no {name!r}. Fix: mend or remove it.")
        value = record[name]
        if (None if value is None else type(value)) not in kinds:
            wanted = " or ".join("null" if kind is None else kind.__name__ for kind in kinds)
            raise _wrong(f"{where}: {name!r}", value, wanted)


def _check_integers(where: str, value: Any, count: int) -> None:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != count or any(type(number) is not int for number in numbers):
        raise _wrong(where, value, f"{count} whole numbers")


def _wrong(where: str, value: Any, wanted: str) -> UserError:
    shown = ascii(value)  # so that a terminal shows it and does not obey it
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return UserError(f"{where} is {shown}, not {wanted}. Fix: mend or remove it.")
