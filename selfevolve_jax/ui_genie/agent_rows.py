"""The agent data that UI-Genie published (UI-Genie-Agent-16k), row by row.

The files were not seen when this was written. What is assumed of them follows from the paper and from
what Euphoria16/UI-Genie's evaluator (src/ms-swift/eval_results_androidcontrol.py) takes and prints:

- JSON lines, each with `messages` (`role`, `content`; the last one the assistant's) and `images`, the
  path of one screenshot.
- The assistant's text is one tool call in `<tool_call>` tags, in absolute pixels of the resized frame.
- That frame is said in the system prompt ("resolution is 504x1148"), or follows from `image_wh`, the
  screen's width and height.
- The user's text is "The user query: …", then "Task progress …: " with Step1 to StepN, each "StepN:"
  or "Step N:" and a description, with a semicolon or a line's end between them, and "None" or nothing
  for the first step.
- Some rows (those made on AndroidLab's set-of-mark screenshots) name a mark in place of a coordinate:
  `index`, `element` or `mark` with a number, or a `coordinate` that is one number. They are translated
  where the row has `marks`, an object from the mark's number to its box (left, top, right, bottom in
  pixels of the frame): to the middle of the box. Without it they are left out.

Nothing is repaired: a row that is otherwise is left out and counted by its reason.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import CLOSE_TAG, OPEN_TAG, Action, Failure, Frame, parse

_MARK_KEYS = ("index", "element", "mark")
_RESOLUTION = re.compile(r"resolution is (\d{1,5})\s?x\s?(\d{1,5})")
_USER = re.compile(r"The user query:(.*?)(?:Task progress\b[^:]*:(.*))?", re.DOTALL)
_STEP = re.compile(r"Step ?(\d+):")


@dataclass(frozen=True)
class AgentRow:
    """One step of a trajectory. image: the path as the row has it. action: coordinates in pixels of
    `frame`. where: file and line. marked: it named a mark, which was translated."""

    goal: str
    history: tuple[str, ...]
    image: str
    frame: Frame
    action: Action
    where: str
    marked: bool = False


def read(
    path: str | os.PathLike[str], frame_of: Callable[[Frame], Frame], counts: Counter[str]
) -> Iterator[AgentRow]:
    """The usable rows of a file, in order.

    frame_of: screen → resized frame (android_control.resized), for rows whose prompt does not say it.
    counts gets "rows" (all that were read), "set_of_mark", "set_of_mark_translated", "used", and
    "left_out: REASON" with the reasons of `row`. UserError for a line that is no JSON object.
    """
    path = epath.Path(path)
    try:
        lines = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Fix: check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is no JSON: {error}. Fix: one object a line.") from error
            if not isinstance(record, dict):
                raise UserError(f"{where} is no JSON object. Fix: one object a line.")
            counts["rows"] += 1
            found, marked = row(record, frame_of, where)
            counts["set_of_mark"] += marked
            if isinstance(found, str):
                counts[f"left_out: {found}"] += 1
            else:
                counts["used"] += 1
                counts["set_of_mark_translated"] += found.marked
                yield found


def row(
    record: Mapping[str, Any], frame_of: Callable[[Frame], Frame], where: str
) -> tuple[AgentRow | str, bool]:
    """(the row, or the reason why it is left out; whether it names a mark). Reasons: messages, images,
    frame, prompt, history, set_of_mark, and an actions.FailureKind."""
    said = _said(record.get("messages"))
    if said is None:
        return "messages", False
    call = _call(said["assistant"])
    mark = None if call is None else _mark(call["arguments"])
    marked = mark is not None
    images = record.get("images")
    if not isinstance(images, list) or len(images) != 1 or not isinstance(images[0], str):
        return "images", marked
    frame = _frame(said["system"], record.get("image_wh"), frame_of)
    if frame is None:
        return "frame", marked
    asked = _USER.fullmatch(said["user"].replace("<image>", "").strip())
    if asked is None or not asked[1].strip():
        return "prompt", marked
    history = _history(asked[2] or "")
    if history is None:
        return "history", marked
    text = said["assistant"]
    if call is not None and mark is not None:
        middle = _middle(record.get("marks"), mark)
        if middle is None:
            return "set_of_mark", True
        arguments = {k: v for k, v in call["arguments"].items() if k not in _MARK_KEYS}
        call = call | {"arguments": arguments | {"coordinate": middle}}
        text = f"{OPEN_TAG}{json.dumps(call)}{CLOSE_TAG}"
    action = parse(text, frame)
    if isinstance(action, Failure):
        return action.kind, marked
    return AgentRow(asked[1].strip(), history, images[0], frame, action, where, marked), marked


def _said(messages: Any) -> dict[str, str] | None:
    """What each role says; None unless there is one user's and then, last, one assistant's message."""
    if not isinstance(messages, list):
        return None
    said: dict[str, str] = {}
    for message in messages:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else ("", "")
        )
        if role not in ("system", "user", "assistant") or role in said:
            return None
        if not isinstance(content, str):
            return None
        said[role] = content
    if list(said)[-2:] != ["user", "assistant"]:
        return None
    return {"system": ""} | said


def _call(text: str) -> dict[str, Any] | None:
    """The tool call as it is, unchecked but for its shape; the strict parse has the last word."""
    body = re.fullmatch(rf"\s*{OPEN_TAG}(.*){CLOSE_TAG}\s*", text, re.DOTALL)
    try:
        call = json.loads(body[1]) if body else None
    except (ValueError, RecursionError):
        return None
    good = isinstance(call, dict) and isinstance(call.get("arguments"), dict)
    return call if good else None


def _mark(arguments: Mapping[str, Any]) -> int | None:
    """The mark that stands in place of a coordinate."""
    place = arguments.get("coordinate")
    if isinstance(place, list) and len(place) == 1:
        place = place[0]
    for value in (*(arguments.get(key) for key in _MARK_KEYS), place):
        if type(value) is int:
            return value
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value):
            return int(value)
    return None


def _middle(marks: Any, mark: int) -> list[int] | None:
    box = marks.get(str(mark)) if isinstance(marks, dict) else None
    if not isinstance(box, list) or len(box) != 4 or any(type(side) is not int for side in box):
        return None
    return [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2]


def _frame(system: str, size: Any, frame_of: Callable[[Frame], Frame]) -> Frame | None:
    stated = _RESOLUTION.search(system)
    try:
        if stated:
            return Frame(int(stated[1]), int(stated[2]))
        if isinstance(size, list) and len(size) == 2:
            return frame_of(Frame(*size))
    except UserError:  # a size that is none
        return None
    return None


def _history(progress: str) -> tuple[str, ...] | None:
    """The descriptions of Step1 to StepN; None for a text that is not of them."""
    progress = progress.strip()
    if progress.lower().rstrip(".") in ("", "none"):
        return ()
    before, *parts = _STEP.split(progress)
    numbers, told = parts[::2], parts[1::2]
    if before.strip() or numbers != [str(i) for i in range(1, len(told) + 1)]:
        return None
    return tuple(text.strip().rstrip(";").rstrip() for text in told)
