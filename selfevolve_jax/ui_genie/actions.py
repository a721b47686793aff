"""The agent's eight actions: the `mobile_use` tool call, read strictly and written canonically.

The format is UI-Genie's (arXiv 2505.21496, its published agent data): a JSON tool call inside
`<tool_call>` tags, where every action carries `action_desc`, a short account of itself that later
becomes the history. Coordinates are absolute pixels of a declared frame. Nothing is repaired: a call
that is not exactly right is a named `Failure`, which is counted, so that the number of bad calls is
always known.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from selfevolve_jax.errors import UserError

Name = Literal["open", "click", "swipe", "long_press", "type", "system_button", "wait", "terminate"]
FailureKind = Literal[
    "no_tool_call",  # no whole <tool_call>…</tool_call> in the text
    "several_tool_calls",  # more than one
    "text_beside_call",  # anything but whitespace before or after it
    "malformed_json",  # also NaN, infinities, a key given twice, half of a surrogate pair
    "wrong_tool",
    "unknown_action",
    "missing_field",
    "ill_typed_field",  # also a word that is not among those a field may hold
    "unknown_field",  # also a field that only another action has
    "outside_frame",
]

TOOL = "mobile_use"
OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
NAMES: tuple[Name, ...] = get_args(Name)
DIRECTIONS = ("up", "down", "left", "right")
DISTANCES = ("short", "medium", "long")
BUTTONS = ("Back", "Home", "Menu", "Enter")
STATUSES = ("success", "failure")
FIELDS: Mapping[str, tuple[str, ...]] = {  # all of them required, with action_desc after them
    "open": ("text",),
    "click": ("coordinate",),
    "swipe": ("coordinate", "direction", "distance"),
    "long_press": ("coordinate", "time"),
    "type": ("text",),
    "system_button": ("button",),
    "wait": ("time",),
    "terminate": ("status",),
}


@dataclass(frozen=True)
class Frame:
    """The size in pixels of the picture that coordinates are of: 0 <= x < width, 0 <= y < height.
    UserError unless both are whole numbers above 0."""

    width: int
    height: int

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if type(value) is not int or value < 1:
                raise UserError(
                    f"a frame's {name} is {value!r}; fix: a whole number of pixels above 0"
                )

    def holds(self, point: tuple[int, int]) -> bool:
        return 0 <= point[0] < self.width and 0 <= point[1] < self.height


@dataclass(frozen=True)
class Action:
    """One action. Fields that it has not (see FIELDS) are None. Hashable."""

    action: Name
    action_desc: str
    coordinate: tuple[int, int] | None = None  # x, y in pixels of the frame
    text: str | None = None
    direction: str | None = None  # of DIRECTIONS: where the finger goes
    distance: str | None = None  # of DISTANCES
    time: float | None = None  # seconds
    button: str | None = None  # of BUTTONS
    status: str | None = None  # of STATUSES


@dataclass(frozen=True)
class Failure:
    """Why a text is no action. `detail` is for people: it names the field and its value."""

    kind: FailureKind
    detail: str


def parse(text: str, frame: Frame) -> Action | Failure:
    """The one action that `text` calls for, or the first thing that is wrong with it.

    The text is exactly one `<tool_call>…</tool_call>`, with whitespace at most around it. Inside is an
    object of `name` and `arguments`; the arguments are `action`, `action_desc` and exactly the fields
    of FIELDS. A coordinate is a list of two integers (12.0 is none, and true is no number), inside
    `frame`. Never raises for a bad text.
    """
    opened, closed = text.count(OPEN_TAG), text.count(CLOSE_TAG)
    if opened > 1 or closed > 1:
        return Failure("several_tool_calls", f"{opened} opening and {closed} closing tags")
    start, end = text.find(OPEN_TAG), text.find(CLOSE_TAG)
    if start < 0 or end < start:
        return Failure("no_tool_call", f"{opened} opening and {closed} closing tags")
    beside = (text[:start] + text[end + len(CLOSE_TAG) :]).strip()
    if beside:
        return Failure("text_beside_call", _short(beside))
    try:
        call = _load(text[start + len(OPEN_TAG) : end])
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested very deep
        return Failure("malformed_json", str(error))
    arguments = _arguments_of(call)
    if isinstance(arguments, Failure):
        return arguments
    action = _action_of(arguments)
    place = action.coordinate if isinstance(action, Action) else None
    if place is not None and not frame.holds(place):
        where = f"{_short(place)} in a frame of {frame.width}x{frame.height}"
        return Failure("outside_frame", where)
    return action


def render(action: Action, described_first: bool = False) -> str:
    """The canonical text of an action: no spaces, fields in the dataclass's order with `action` first
    and `action_desc` last (or second), whole seconds without a decimal point. parse(render(a), frame)
    == a for every action whose coordinate is in the frame. UserError where a field is missing or wrong.
    """
    record = as_record(_checked(as_record(action)))
    if described_first:
        record = {name: record[name] for name in ("action", "action_desc")} | record
    call = {"name": TOOL, "arguments": record}
    body = json.dumps(call, ensure_ascii=False, separators=(",", ":"))
    # A tag that someone types is written with an escape, or the call would seem to end there.
    for tag in (OPEN_TAG, CLOSE_TAG):
        body = body.replace(tag, "\\u003c" + tag[1:])
    return f"{OPEN_TAG}{body}{CLOSE_TAG}"


def as_record(action: Action) -> dict[str, Any]:
    """The fields that an action has, as JSON values, in the canonical order: what `arguments` holds."""
    record: dict[str, Any] = {"action": action.action}
    for name in ("coordinate", "text", "direction", "distance", "time", "button", "status"):
        value = getattr(action, name)
        if value is not None:
            record[name] = list(value) if name == "coordinate" else value
    time = record.get("time")
    if isinstance(time, float) and time.is_integer() and abs(time) < 2**53:
        record["time"] = int(time)
    return record | {"action_desc": action.action_desc}


def from_record(record: Mapping[str, Any]) -> Action:
    """The action that `as_record` wrote. UserError where a field is missing, unknown or ill-typed (a
    record knows no frame, so its coordinate is not held against one)."""
    return _checked(record)


def failures(results: Iterable[Action | Failure]) -> dict[str, int]:
    """How many results failed, by kind, the most frequent first. Kinds that did not occur are left
    out."""
    kinds = Counter(result.kind for result in results if isinstance(result, Failure))
    return dict(kinds.most_common())


def finger_direction(scroll: str) -> str:
    """Where the finger goes to scroll: the opposite. A scroll "down", AndroidControl's word, shows what
    is further down, which a finger that moves up does; `Action.direction` is the finger's. UserError
    for a word that is no direction."""
    if scroll not in DIRECTIONS:
        raise UserError(f"scroll direction {scroll!r}; fix: one of {', '.join(DIRECTIONS)}")
    return {"up": "down", "down": "up", "left": "right", "right": "left"}[scroll]


def tool_schema(frame: Frame) -> dict[str, Any]:
    """The tool as JSON schema, in the shape in which chat templates list tools: what the full prompt
    style puts before Qwen2.5-VL. The fields that an action needs are told in `action`'s description,
    as the object is flat, as in the mobile_use tool that Qwen published."""
    needs = "; ".join(f"{name}: {', '.join(fields)}" for name, fields in FIELDS.items())
    properties = {
        "action": {
            "type": "string",
            "enum": list(NAMES),
            "description": "What to do. open starts the app called text. click touches the point "
            "coordinate. swipe moves the finger from coordinate. long_press holds the point "
            "coordinate for time seconds. type enters text where the cursor is. system_button presses "
            "one of the device's own buttons. wait does nothing for time seconds. terminate ends the "
            f"task and says how it went. The fields that each one needs, and no others: {needs}. "
            "Every action needs action_desc too.",
        },
        "coordinate": {
            "type": "array",
            "items": {"type": "integer"},
            "minItems": 2,
            "maxItems": 2,
            "description": "[x, y]: pixels from the left edge and from the top edge, "
            f"x from 0 to {frame.width - 1} and y from 0 to {frame.height - 1}.",
        },
        "text": {"type": "string", "description": "The app's name, or what is typed."},
        "direction": {
            "type": "string",
            "enum": list(DIRECTIONS),
            "description": "Where the finger moves; the content follows it, so that up shows what is "
            "further down.",
        },
        "distance": {
            "type": "string",
            "enum": list(DISTANCES),
            "description": "How far the finger moves.",
        },
        "time": {"type": "number", "minimum": 0, "description": "Seconds."},
        "button": {"type": "string", "enum": list(BUTTONS), "description": "The button's name."},
        "status": {
            "type": "string",
            "enum": list(STATUSES),
            "description": "Whether the task was done.",
        },
        "action_desc": {
            "type": "string",
            "description": "One short sentence that says what this action does.",
        },
    }
    return {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Operates a device with a touch screen, one action at a time, by its "
            f"screenshots. The screen's resolution is {frame.width}x{frame.height} pixels.",
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": ["action", "action_desc"],
            },
        },
    }


def _load(body: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, times in Counter(name for name, _ in pairs).items():
            if times > 1:
                raise ValueError(f"the key {_short(name)} is given {times} times")
        return dict(pairs)

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(_short(digits))

    call = json.loads(body, object_pairs_hook=once, parse_constant=refuse, parse_float=finite)
    # JSON can spell half of a surrogate pair, which no file could then hold as UTF-8. This raises
    # UnicodeEncodeError, which is a ValueError.
    json.dumps(call, ensure_ascii=False).encode()
    return call


def _arguments_of(call: Any) -> Mapping[str, Any] | Failure:
    if not isinstance(call, dict):
        return Failure("ill_typed_field", f"the tool call is {_short(call)}, not an object")
    wrong = _fields_wrong(call, ("name", "arguments"), "the tool call")
    if wrong:
        return wrong
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str):
        return Failure("ill_typed_field", f"name is {_short(name)}, not a string")
    if name != TOOL:
        return Failure("wrong_tool", f"{_short(name)}, not {TOOL!r}")
    if not isinstance(arguments, dict):
        return Failure("ill_typed_field", f"arguments is {_short(arguments)}, not an object")
    return arguments


def _action_of(arguments: Mapping[str, Any]) -> Action | Failure:
    """The action of these arguments, all but its place in a frame checked."""
    if "action" not in arguments:
        return Failure("missing_field", "action")
    name = arguments["action"]
    if not isinstance(name, str):
        return Failure("ill_typed_field", f"action is {_short(name)}, not a string")
    if name not in FIELDS:
        return Failure("unknown_action", _short(name))
    wrong = _fields_wrong(arguments, ("action", *FIELDS[name], "action_desc"), name)
    if wrong:
        return wrong
    for field, value in arguments.items():
        if field != "action" and not _KIND_OF[field][0](value):
            return Failure(
                "ill_typed_field", f"{field} is {_short(value)}, not {_KIND_OF[field][1]}"
            )
    values = dict(arguments)
    if "coordinate" in values:
        values["coordinate"] = tuple(values["coordinate"])
    if "time" in values:
        values["time"] = float(values["time"])
    return Action(**values)


def _fields_wrong(given: Mapping[str, Any], needed: tuple[str, ...], of: str) -> Failure | None:
    missing = [name for name in needed if name not in given]
    if missing:
        return Failure("missing_field", f"{', '.join(missing)} of {of}")
    unknown = [name for name in given if name not in needed]
    if unknown:
        return Failure("unknown_field", f"{_short(unknown)} of {of}")
    return None


def _checked(record: Mapping[str, Any]) -> Action:
    action = _action_of(record)
    if isinstance(action, Failure):
        raise UserError(
            f"an action's record is wrong ({action.kind}: {action.detail}): {_short(dict(record))}; "
            f"fix: the fields that ui_genie/actions.py lists under FIELDS, and action_desc"
        )
    return action


def _one_of(words: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in words, "one of " + ", ".join(words)


def _is_coordinate(value: Any) -> bool:
    # type(...) is int: True is an int to isinstance, and here it is no number.
    return isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)


def _is_time(value: Any) -> bool:
    try:
        return type(value) in (int, float) and 0 <= float(value) < math.inf
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_KIND_OF: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "coordinate": (_is_coordinate, "a list of two whole numbers"),
    "text": (_is_text, "a string"),
    "direction": _one_of(DIRECTIONS),
    "distance": _one_of(DISTANCES),
    "time": (_is_time, "a number of seconds from 0 on"),
    "button": _one_of(BUTTONS),
    "status": _one_of(STATUSES),
    "action_desc": (_is_text, "a string"),
}


def _short(value: Any) -> str:
    shown = ascii(value) if not isinstance(value, str) else repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "…"
