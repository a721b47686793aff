"""What is drawn over a screenshot: where an action touches it, and what it touches there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# How far a swipe's arrow goes, of the frame's side; a sketch, as each device has its own distances.
REACH = {"short": 0.125, "medium": 0.25, "long": 0.5}


def marks(step: Mapping[str, Any], frame: tuple[int, int]) -> dict[str, Any]:
    """What is drawn over a step's screenshot, in pixels of the frame: "ring" (x, y, radius) where the
    finger goes down, "held" if it stays there, "arrow" (x, y) where a swipe's arrow ends, "box" (left,
    top, width, height) of the element that is touched or typed into, "stroke"; and "outside", the
    coordinate if it is not in the frame. None for what the action has not."""
    width, height = frame
    side = min(frame)
    drawn = {
        **dict.fromkeys(("ring", "held", "arrow", "outside")),
        **{"box": _box(target(step), frame), "stroke": _short(max(0.008 * side, 0.5))},
    }
    action = step["action"] or {}
    point = action.get("coordinate")
    if point is None:
        return drawn
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        return drawn | {"outside": f"({x}, {y})"}
    drawn |= {"ring": (x, y, _short(0.045 * side)), "held": action["action"] == "long_press"}
    if action["action"] == "swipe":
        drawn["arrow"] = _tip(x, y, action, frame)
    return drawn


def _tip(x: int, y: int, action: Mapping[str, Any], frame: tuple[int, int]) -> Any:
    """Where the arrow ends: inside the frame where there is room for an arrow that can be seen."""
    across = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    towards = across.get(str(action.get("direction")))
    if towards is None:
        return None
    horizontal = towards[0] != 0
    side = frame[0] if horizontal else frame[1]
    at, sign = (x, towards[0]) if horizontal else (y, towards[1])
    room = side - at if sign > 0 else at
    reach = REACH.get(str(action.get("distance")), REACH["medium"]) * side
    length = max(min(reach, room - 0.03 * side), 0.12 * side)
    return _short(x + towards[0] * length), _short(y + towards[1] * length)


def target(step: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The smallest element under a click or a long press, or the focused one where text is typed."""
    action = step["action"] or {}
    if action.get("coordinate") is not None and action["action"] != "swipe":
        x, y = action["coordinate"]
        under = [
            element
            for element in step["elements"]
            if element["box"][0] <= x < element["box"][2]
            and element["box"][1] <= y < element["box"][3]
        ]
        return min(under, key=_area, default=None)
    if action.get("action") == "type":
        return next((element for element in step["elements"] if element["focused"]), None)
    return None


def _area(element: Mapping[str, Any]) -> int:
    left, top, right, bottom = element["box"]
    return (right - left) * (bottom - top)


def _box(element: Mapping[str, Any] | None, frame: tuple[int, int]) -> tuple[int, ...] | None:
    """Left, top, width, height of what of it is in the frame."""
    if element is None:
        return None
    left, right = (min(max(side, 0), frame[0]) for side in element["box"][0::2])
    top, bottom = (min(max(side, 0), frame[1]) for side in element["box"][1::2])
    return left, top, max(right - left, 0), max(bottom - top, 0)


def _short(number: float) -> float:
    return round(number, 2)
