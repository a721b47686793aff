"""AndroidControl, offline: demonstrations on Android, read from its TFRecord shards as evaluation and
training rows.

The dataset is google-research/android_control (arXiv 2406.03679), at gs://gresearch/android_control:
20 GZIP shards of episodes, splits.json and test_subsplits.json. Its README gives the features and the
actions; `rows` says what becomes of each. The reader was tested on shards made by its own tests; the
50 GB themselves were not read with it.

What is scaled: coordinates and boxes, from the screen to the resized screenshot that the model sees.
A point goes to floor(x · width' / width), which lies in the frame whenever x lies in the screen. Of a
box left and top go down and right and bottom up, so that the scaled box holds the scaled points of
the box.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from etils import epath

from selfevolve_jax import remote
from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import accessibility, tfrecord
from selfevolve_jax.ui_genie.accessibility import Box
from selfevolve_jax.ui_genie.actions import Action, Frame, finger_direction
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.evaluators import Truth

Setting = Literal["high", "low"]
FOLDER = "gs://gresearch/android_control"
MAX_PIXELS = 602_112  # of a screenshot, in UI-Genie's training and evaluation of its agents
SPLITS = ("train", "validation", "test")
# The finish step, which the data has not: harnesses put it on the last screenshot. These words are
# the description that UI-Genie's published ground truth gives it; that they also stand for the
# instruction of the low-level setting is our assumption.
FINISH = "task has completed"
# What the data does not say and a tool call must: UI-Genie's published ground truth has the same two
# seconds, and leaves out a swipe's place and length. No evaluator profile compares any of them.
SECONDS = 2.0
DISTANCE = "medium"

_SHARD = re.compile(r"android_control-(\d{5})-of-(\d{5})")
_FIX = "Fix: download the shard again, or check that it is AndroidControl's."


@dataclass(frozen=True, eq=False)
class Episode:
    """A demonstration as it is in the data. screenshots (PNG), screens (their sizes in pixels) and
    trees (AndroidAccessibilityForest) have one more than actions and instructions. where: file and
    record, for messages."""

    id: int
    goal: str
    screenshots: tuple[bytes, ...]
    screens: tuple[Frame, ...]
    trees: tuple[bytes, ...]
    actions: tuple[Mapping[str, Any], ...]
    instructions: tuple[str, ...]
    where: str


@dataclass(frozen=True, eq=False)
class Row:
    """One step to predict. Paired with predictions by (episode_id, step).

    asked: what the agent is asked, the episode's goal (high) or the step's instruction (low).
    history: descriptions of the earlier actions. screenshot: the PNG, of the screen's size.
    frame: what coordinates, box and elements are of: the resized screenshot. action: the truth.
    box: the target's, right and bottom exclusive; None where the action has no place or the tree
      shows nothing there.
    """

    episode_id: int
    step: int
    goal: str
    asked: str
    history: tuple[str, ...]
    screenshot: bytes
    screen: Frame
    frame: Frame
    action: Action
    box: Box | None
    elements: tuple[Element, ...]


def resized(
    min_pixels: int, max_pixels: int = MAX_PIXELS, factor: int = 28
) -> Callable[[Frame], Frame]:
    """Screen → frame as Qwen2.5-VL's processor resizes a screenshot (images.smart_resize)."""

    def frame_of(screen: Frame) -> Frame:
        # images.py imports jax, which reading data does not need
        from selfevolve_jax.images import smart_resize

        height, width = smart_resize(screen.height, screen.width, factor, min_pixels, max_pixels)
        return Frame(width, height)

    return frame_of


def split_ids(folder: str | os.PathLike[str], split: str) -> frozenset[int]:
    """Episode ids of a split (train, validation, test) or a part of test (IDD, app_unseen, task_unseen,
    category_unseen). UserError for another name or a damaged file."""
    remote.check(folder)
    name = "splits.json" if split in SPLITS else "test_subsplits.json"
    path = epath.Path(folder) / name
    parts = _json_file(path)
    if split not in parts:
        parts = {} if name == "splits.json" else parts
        raise UserError(
            f"AndroidControl has no split {split!r}; fix: one of {', '.join([*SPLITS, *parts])}"
        )
    ids = parts[split]
    if not isinstance(ids, list) or any(type(each) is not int for each in ids):
        raise UserError(f"{path}: {split!r} is no list of episode numbers. Fix: download it again.")
    return frozenset(ids)


def shards(folder: str | os.PathLike[str]) -> list[epath.Path]:
    """The shards in order. UserError if there are none or some are missing: their episodes would
    leave the denominator without a word."""
    remote.check(folder)
    folder = epath.Path(folder)
    try:
        found = {path.name: path for path in folder.iterdir() if _SHARD.fullmatch(path.name)}
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error}. Fix: check the path.") from error
    if not found:
        raise UserError(
            f"{folder} has no shard android_control-NNNNN-of-NNNNN. Fix: check the path, or copy "
            f"the shards from {FOLDER}."
        )
    total = max(name.rpartition("-")[2] for name in found)
    wanted = [f"android_control-{i:05}-of-{total}" for i in range(int(total))]
    missing = [name for name in wanted if name not in found]
    if missing or len(found) != len(wanted):
        said = f"lacks {missing[0]}" if missing else "has shards of two sizes"
        raise UserError(f"{folder} {said} ({len(found)} shards). Fix: copy them from {FOLDER}.")
    return [found[name] for name in wanted]


def episodes(
    paths: Sequence[str | os.PathLike[str]], ids: frozenset[int], counts: Counter[str]
) -> Iterator[Episode]:
    """The episodes with these ids, as the shards have them. counts gets "episodes" and, at the end,
    "missing_episodes". UserError naming file and record for damage and for an id that is there twice.
    """
    seen: set[int] = set()
    for path in paths:
        for number, data in enumerate(tfrecord.records(path)):
            where = f"{os.fspath(path)}, record {number}"
            try:
                features = tfrecord.example(data)
            except tfrecord.WireError as error:
                raise UserError(f"{where}: no tf.Example ({error}). {_FIX}") from error
            [episode_id] = _list(where, features, "episode_id", int, 1)
            if episode_id not in ids:
                continue
            if episode_id in seen:
                raise UserError(f"{where}: episode {episode_id} is there a second time. {_FIX}")
            seen.add(episode_id)
            counts["episodes"] += 1
            yield _episode(f"{where} (episode {episode_id})", episode_id, features)
    counts["missing_episodes"] += len(ids - seen)


def rows(
    episode: Episode, setting: Setting, frame_of: Callable[[Frame], Frame], counts: Counter[str]
) -> list[Row]:
    """The steps of an episode, and the finish step on its last screenshot.

    click, long_press: at the same place. scroll → swipe, with the finger's direction, which is the
    opposite, from the middle of the frame. open_app → open. type, input_text → type (`type` also
    touches the field and presses Enter, which our action does not say). navigate_home, navigate_back
    → system_button. wait. The description is the step's instruction. Last: terminate, success.

    counts gets "rows"; "without_box": a click with nothing under it in the tree; "off_screen": a click
    outside the screen, which is put on its edge; "without_instruction": an empty one, where the
    description is made from the action and the low setting asks for the goal. UserError naming the
    step for an action that is none of the above.
    """
    if setting not in get_args(Setting):
        raise UserError(
            f"AndroidControl's setting {setting!r}; fix: {' or '.join(get_args(Setting))}"
        )
    made: list[Row] = []
    history: tuple[str, ...] = ()
    for step, screenshot in enumerate(episode.screenshots):
        where = f"{episode.where}, step {step}"
        screen, last = episode.screens[step], step == len(episode.actions)
        frame = frame_of(screen)
        nodes = _forest(where, episode.trees[step])
        instruction = FINISH if last else episode.instructions[step].strip()
        counts["without_instruction"] += not instruction
        raw = {"action_type": "finish"} if last else episode.actions[step]
        action, point = _action(where, raw, instruction, screen, frame, counts)
        box = None
        if point is not None:
            node = accessibility.target(nodes, *point)
            box = None if node is None else scaled_box(_cut(node.box, screen), screen, frame)
            counts["without_box"] += node is None
        made.append(
            Row(
                episode_id=episode.id,
                step=step,
                goal=episode.goal,
                asked=instruction or episode.goal if setting == "low" else episode.goal,
                history=history,
                screenshot=screenshot,
                screen=screen,
                frame=frame,
                action=action,
                box=box,
                elements=_elements(nodes, screen, frame),
            )
        )
        history = (*history, action.action_desc)
    counts["rows"] += len(made)
    return made


def split_rows(
    folder: str | os.PathLike[str],
    split: str,
    setting: Setting,
    frame_of: Callable[[Frame], Frame],
    counts: Counter[str],
) -> Iterator[Row]:
    """All rows of a split, one episode in memory at a time. See `split_ids`, `episodes`, `rows`."""
    ids = split_ids(folder, split)
    for episode in episodes(shards(folder), ids, counts):
        yield from rows(episode, setting, frame_of, counts)


def truth(row: Row) -> Truth:
    """What the evaluators compare with; to them the edges of a box belong to it."""
    box = None if row.box is None else (row.box[0], row.box[1], row.box[2] - 1, row.box[3] - 1)
    return Truth(row.action, row.frame, box, row.screen)


def scaled_point(x: int, y: int, screen: Frame, frame: Frame) -> tuple[int, int]:
    """From pixels of the screen to pixels of the frame, rounded down."""
    return x * frame.width // screen.width, y * frame.height // screen.height


def scaled_box(box: Box, screen: Frame, frame: Frame) -> Box:
    """From pixels of the screen to pixels of the frame: left and top down, right and bottom up."""
    left, top = scaled_point(box[0], box[1], screen, frame)
    right, bottom = scaled_point(-box[2], -box[3], screen, frame)
    return left, top, -right, -bottom


def _action(
    where: str,
    raw: Mapping[str, Any],
    instruction: str,
    screen: Frame,
    frame: Frame,
    counts: Counter[str],
) -> tuple[Action, tuple[int, int] | None]:
    """(our action, the point that was touched, in pixels of the screen)."""
    kind = raw.get("action_type")
    say = instruction or str(kind).replace("_", " ")
    if kind in ("click", "long_press"):
        x, y = (_number(where, raw, key) for key in ("x", "y"))
        point = (min(max(x, 0), screen.width - 1), min(max(y, 0), screen.height - 1))
        counts["off_screen"] += point != (x, y)
        at, seconds = scaled_point(*point, screen, frame), SECONDS if kind == "long_press" else None
        return Action(kind, say, coordinate=at, time=seconds), point
    if kind == "scroll":
        try:
            direction = finger_direction(_string(where, raw, "direction"))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        middle = (frame.width // 2, frame.height // 2)
        return Action("swipe", say, coordinate=middle, direction=direction, distance=DISTANCE), None
    if kind == "open_app":
        return Action("open", say, text=_string(where, raw, "app_name")), None
    if kind in ("type", "input_text"):
        return Action("type", say, text=_string(where, raw, "text")), None
    if kind in ("navigate_home", "navigate_back"):
        return Action("system_button", say, button=kind.rpartition("_")[2].capitalize()), None
    if kind == "wait":
        return Action("wait", say, time=SECONDS), None
    if kind == "finish":
        return Action("terminate", say, status="success"), None
    raise UserError(
        f"{where}: the action {json.dumps(dict(raw))[:200]} is of no known type. {_FIX}"
    )


def _elements(
    nodes: Sequence[accessibility.Node], screen: Frame, frame: Frame
) -> tuple[Element, ...]:
    return tuple(
        Element(e.kind, e.text, scaled_box(e.box, screen, frame), e.focused, e.checked)
        for e in accessibility.elements(nodes, screen.width, screen.height)
    )


def _forest(where: str, tree: bytes) -> list[accessibility.Node]:
    try:
        return accessibility.forest(tree)
    except tfrecord.WireError as error:
        raise UserError(f"{where}: no AndroidAccessibilityForest ({error}). {_FIX}") from error


def _cut(box: Box, screen: Frame) -> Box:
    return max(box[0], 0), max(box[1], 0), min(box[2], screen.width), min(box[3], screen.height)


def _episode(where: str, episode_id: int, features: Mapping[str, tfrecord.Feature]) -> Episode:
    screenshots = _list(where, features, "screenshots", bytes, None)
    steps = len(screenshots) - 1
    if steps < 0:
        raise UserError(f"{where}: no screenshots. {_FIX}")
    sizes = zip(
        _list(where, features, "screenshot_widths", int, steps + 1),
        _list(where, features, "screenshot_heights", int, steps + 1),
        strict=True,
    )
    [goal] = _list(where, features, "goal", bytes, 1)
    try:
        screens = tuple(Frame(width, height) for width, height in sizes)
        actions = tuple(map(_loads, _list(where, features, "actions", bytes, steps)))
        told = _list(where, features, "step_instructions", bytes, steps)
        instructions = tuple(map(tfrecord.text_of, told))
        goal = tfrecord.text_of(goal)
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {error}. {_FIX}") from error
    return Episode(
        id=episode_id,
        goal=goal,
        screenshots=tuple(screenshots),
        screens=screens,
        trees=tuple(_list(where, features, "accessibility_trees", bytes, steps + 1)),
        actions=actions,
        instructions=instructions,
        where=where,
    )


def _list(
    where: str, features: Mapping[str, tfrecord.Feature], name: str, kind: type, size: int | None
) -> list[Any]:
    """A feature's values, `size` of them (None: any number)."""
    values = features.get(name)
    if values is None:
        raise UserError(f"{where}: no feature {name!r}. {_FIX}")
    if size is not None and len(values) != size:
        raise UserError(f"{where}: {name!r} has {len(values)} values, not {size}. {_FIX}")
    if any(type(value) is not kind for value in values):
        raise UserError(f"{where}: {name!r} is not of {kind.__name__} values. {_FIX}")
    return values


def _loads(action: bytes) -> Mapping[str, Any]:
    record = json.loads(action)
    if not isinstance(record, dict):
        raise ValueError(f"an action is no JSON object but {record!r}"[:200])
    return record


def _number(where: str, raw: Mapping[str, Any], key: str) -> int:
    value: Any = raw.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN fails the comparison too
    if not number or not abs(value) < 1e9:
        raise UserError(f"{where}: {raw['action_type']} has {key} = {value!r}, no number. {_FIX}")
    return math.floor(value)


def _string(where: str, raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: {raw['action_type']} has {key} = {value!r}, no text. {_FIX}")
    return value


def _json_file(path: epath.Path) -> dict[str, Any]:
    try:
        parts = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Fix: copy it from {FOLDER}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Fix: copy it from {FOLDER}.") from error
    if not isinstance(parts, dict):
        raise UserError(f"{path} is no JSON object. Fix: copy it from {FOLDER}.")
    return parts
