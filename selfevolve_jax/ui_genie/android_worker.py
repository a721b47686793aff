"""AndroidWorld's side of android_world.py: a program that runs in the Python that has android_world.

It is started by its file's path and imports nothing of this project, whose packages that Python need
not have, and android_world's own only when it starts. It was exercised against a stand-in for the
package, never against the package and an emulator.

Protocol, JSON lines. First line out: {"ready": true, "tasks": [name, …]}. Then each request in has one
reply out, in order, with its `id`:

    {"id": 1, "do": "reset", "task": "ContactsAddContact", "seed": 3}
    {"id": 2, "do": "act", "action": {"action": "click", "coordinate": [540, 1200], …}}
    {"id": 3, "do": "close"}
    {"id": 1, "goal": …, "png": base64, "nodes": [{"box": [l, t, r, b], "text": …}, …], "reward": 0.0}

or, in place of what was asked, {"id", "error": message, "kind": "user" (a mistake that the user can
mend) or "device"}. Coordinates and boxes are pixels of the screen, the PNG's own.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import os
import random
import struct
import sys
import time
import zlib
from typing import Any

# How far a finger goes, as a part of the screen along its way. Ours: the schema has words alone.
REACH = {"short": 0.15, "medium": 0.3, "long": 0.5}
SWIPE_MS = 500  # slow enough to be a scroll and no fling
LONGEST_WAIT_S = 10.0
_KEYS = {
    "Home": "KEYCODE_HOME",
    "Back": "KEYCODE_BACK",
    "Menu": "KEYCODE_MENU",
    "Enter": "KEYCODE_ENTER",
}
_FLAGS = ("checkable", "checked", "clickable", "editable", "focused", "long_clickable", "visible")


class UserMistake(Exception):
    """What the user can mend: the message says how."""


class Device:
    """One emulator and the task that is on it."""

    def __init__(self, console_port: int, grpc_port: int, adb: str) -> None:
        try:
            registry = importlib.import_module("android_world.registry")
            adb_utils = importlib.import_module("android_world.env.adb_utils")
            env_launcher = importlib.import_module("android_world.env.env_launcher")
        except ImportError as error:
            raise UserMistake(
                f"{sys.executable} cannot import android_world ({error}); fix: install "
                "google-research/android_world into a Python of its own, and name that Python"
            ) from None
        self._adb = adb_utils
        tasks = registry.TaskRegistry()
        self._tasks = tasks.get_registry(tasks.ANDROID_WORLD_FAMILY)
        self._env = env_launcher.load_and_setup_env(
            console_port=console_port, adb_path=adb, grpc_port=grpc_port
        )
        self._task: Any = None

    @property
    def tasks(self) -> list[str]:
        return sorted(self._tasks)

    def reset(self, name: str, seed: int) -> dict[str, Any]:
        if name not in self._tasks:
            raise UserMistake(
                f"AndroidWorld has no task {name!r}; fix: one of {', '.join(sorted(self._tasks))}"
            )
        self._end_task()
        kind = self._tasks[name]
        kind.set_device_time(self._env)
        # As android_world's own suites draw a task's parameters: from Python's generator.
        random.seed(seed)
        task = kind({**kind.generate_random_params(), "seed": seed})
        task.initialize_task(self._env)
        self._task = task
        self._env.reset(go_home=task.start_on_home_screen)
        return self._seen()

    def act(self, action: dict[str, Any]) -> dict[str, Any]:
        if self._task is None:
            raise RuntimeError("an action before the first reset")
        self._play(action)
        return self._seen()

    def close(self) -> None:
        self._end_task()
        self._env.close()

    def _end_task(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            task.tear_down(self._env)

    def _play(self, action: dict[str, Any]) -> None:
        # Straight to adb: android_world's JSONAction presses Enter after typing, has no place to
        # swipe from, and means the content's direction by left and right.
        adb, controller, name = self._adb, self._env.controller, action["action"]
        if name == "click":
            adb.tap_screen(*action["coordinate"], controller)
        elif name == "long_press":
            at = [str(side) for side in action["coordinate"]]
            hold = str(round(1000 * min(action["time"], LONGEST_WAIT_S)))
            adb.issue_generic_request(["shell", "input", "swipe", *at, *at, hold], controller)
        elif name == "swipe":
            width, height = self._env.logical_screen_size
            start = action["coordinate"]
            end = swipe_end(start, action["direction"], action["distance"], width, height)
            command = adb.generate_swipe_command(*start, *end, SWIPE_MS)
            adb.issue_generic_request(command, controller)
        elif name == "type":
            adb.type_text(action["text"], controller, timeout_sec=10)
        elif name == "open":
            adb.launch_app(action["text"], controller)
        elif name == "system_button":
            adb.press_keyboard_generic(_KEYS[action["button"]], controller)
        elif name == "wait":
            time.sleep(min(action["time"], LONGEST_WAIT_S))
        else:
            raise ValueError(f"no such action on a device: {name!r}")

    def _seen(self) -> dict[str, Any]:
        state = self._env.get_state(wait_to_stabilize=True)
        height, width = state.pixels.shape[:2]
        # AndroidWorld itself counts nothing but a whole success.
        reward = float(self._task.is_successful(self._env) == 1)
        return {
            "goal": self._task.goal,
            "png": base64.b64encode(png(width, height, state.pixels.tobytes())).decode(),
            "nodes": [node(element) for element in state.ui_elements if element.bbox_pixels],
            "reward": reward,
        }


def swipe_end(
    start: list[int], direction: str, distance: str, width: int, height: int
) -> tuple[int, int]:
    """Where a finger that starts at `start` ends: REACH of the screen on, at most at its edge."""
    dx, dy = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}[direction]
    x = start[0] + round(dx * REACH[distance] * width)
    y = start[1] + round(dy * REACH[distance] * height)
    return min(max(x, 0), width - 1), min(max(y, 0), height - 1)


def node(element: Any) -> dict[str, Any]:
    """A UIElement of android_world as the fields of accessibility.Node."""
    box = element.bbox_pixels
    texts = {
        "class_name": element.class_name,
        "description": element.content_description,
        "hint": element.hint_text,
        "text": element.text,
    }
    flags = {flag: bool(getattr(element, f"is_{flag}")) for flag in _FLAGS}
    sides = [int(side) for side in (box.x_min, box.y_min, box.x_max, box.y_max)]
    return {"box": sides, **{key: text or "" for key, text in texts.items()}, **flags}


def png(width: int, height: int, rgb: bytes) -> bytes:
    """A PNG of 8 bits each of R, G, B, row by row, without a library that might not be there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    stride = 3 * width
    lines = b"".join(b"\0" + rgb[at : at + stride] for at in range(0, stride * height, stride))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def answer(device: Device, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "reset":
        return device.reset(request["task"], request["seed"])
    if request["do"] == "act":
        return device.act(request["action"])
    if request["do"] == "close":
        device.close()
        return {}
    raise ValueError(f"unknown request {request['do']!r}")


def failure(error: Exception) -> dict[str, str]:
    if isinstance(error, UserMistake):
        return {"error": str(error), "kind": "user"}
    return {"error": f"{type(error).__name__}: {error}", "kind": "device"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="AndroidWorld for selfevolve_jax, over JSON lines."
    )
    parser.add_argument("--console-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--adb", required=True)
    options = parser.parse_args()
    # A script's own folder is searched first, and ours has an android_world.py.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != here]
    # Libraries and adb print to stdout; the protocol keeps a copy and gives them stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(record: dict[str, Any]) -> None:
        replies.write(json.dumps(record) + "\n")
        replies.flush()

    try:
        device = Device(options.console_port, options.grpc_port, options.adb)
    except Exception as error:
        reply(failure(error))
        return 1
    reply({"ready": True, "tasks": device.tasks})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            record = answer(device, request)
        except Exception as error:
            record = failure(error)
        reply({"id": request["id"], **record})
        if request["do"] == "close":
            return 0
    device.close()  # whoever asked is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
