"""The AndroidWorld adapter over real pipes: a recorded device, and the worker on a stand-in package.

There is no emulator here. RECORDING is what a device would say, with small PNGs; PLAYER is a process
that speaks the protocol from it and refuses a request that is not the recorded one.
"""

import asyncio
import base64
import io
import json
import os
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import android_worker
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.android_world import (
    WORKER,
    AndroidWorld,
    BadReply,
    DeviceError,
    WorkerDied,
    WorkerLost,
    WorkerTimedOut,
    android_world_fleet,
    open_android_world,
    worker_command,
)
from selfevolve_jax.ui_genie.environment import Broken, Element, Observation, State

PLAYER = textwrap.dedent(
    """
    import json, os, subprocess, sys, time
    lines = [json.loads(line) for line in open(sys.argv[1])]
    print("starting", file=sys.stderr, flush=True)
    print(json.dumps({"ready": True}), flush=True)
    for line, step in zip(sys.stdin, lines):
        request = json.loads(line)
        number = request.pop("id")
        if "once" in step and not os.path.exists(step["once"]):
            open(step["once"], "w").close()
            print("the emulator went away", file=sys.stderr, flush=True)
            os._exit(7)
        if "child" in step:
            child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
            open(step["child"], "w").write(str(child.pid))
        if "hang" in step:
            time.sleep(60)
        if "raw" in step:
            print(step["raw"], flush=True)
            continue
        reply = step["reply"]
        if request != step["request"]:
            reply = {"error": f"asked {request}, recorded {step['request']}", "kind": "device"}
        print(json.dumps({"id": number, **reply}), flush=True)
        if request["do"] == "close":
            break
    """
)


def picture(colour: tuple[int, int, int]) -> str:
    out = io.BytesIO()
    Image.new("RGB", (40, 80), colour).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def seen(colour: tuple[int, int, int], reward: float = 0.0) -> dict:
    node = {"box": [8, 16, 24, 32], "text": "Save", "class_name": "android.widget.Button"}
    node |= {"clickable": True, "visible": True}
    return {"goal": "Save it.", "png": picture(colour), "nodes": [node], "reward": reward}


# The screen has 40 x 80 pixels and the frame 20 x 40: a pixel of the frame is two by two of the
# screen, and the middle of the frame's (5, 10) is at the corner of the screen's (11, 21).
CLICK = Action("click", "click Save", coordinate=(5, 10))
RESET = {"do": "reset", "task": "SaveIt", "seed": 3}
RECORDING = [
    {"request": RESET, "reply": seen((255, 0, 0))},
    {
        "request": {
            "do": "act",
            "action": {"action": "click", "coordinate": [11, 21]},
        },
        "reply": seen((0, 255, 0), 1.0),
    },
    {"request": {"do": "close"}, "reply": {}},
]


def halved(screen: Frame) -> Frame:
    return Frame(screen.width // 2, screen.height // 2)


@pytest.fixture
def player(tmp_path):
    """recording → command of a process that plays it."""
    (tmp_path / "player.py").write_text(PLAYER)

    def command(recording: list[dict], name: str = "recording") -> list[str]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(step) + "\n" for step in recording))
        return [sys.executable, "-S", str(tmp_path / "player.py"), str(path)]

    return command


def opened(command, play, reply_s=20.0):
    """What `play` returns on an open world."""

    async def run():
        world = await open_android_world(command, halved, reply_s)
        try:
            return await play(world)
        finally:
            await world.close()
            assert world._process.returncode is not None

    return asyncio.run(run())


def colour_of(seen: Observation) -> tuple:
    with Image.open(io.BytesIO(seen.screenshot)) as shown:
        assert shown.size == (seen.frame.width, seen.frame.height) == (20, 40)
        pixel = shown.convert("RGB").getpixel((10, 10))
    assert isinstance(pixel, tuple)
    return pixel


def test_an_episode_of_the_recorded_device(player):
    async def play(world: AndroidWorld):
        return await world.reset("SaveIt", 3), await world.act(CLICK)

    before, after = opened(player(RECORDING), play)
    assert colour_of(before) == (255, 0, 0) and colour_of(after) == (0, 255, 0)
    assert before.goal == "Save it." and not before.done and before.reward == 0.0
    assert after.reward == 1.0 and not after.done
    assert before.elements == (Element("button", "Save", (4, 8, 12, 16)),)


def test_a_request_that_was_not_recorded_is_a_device_error(player):
    with pytest.raises(DeviceError, match="recorded"):
        opened(player(RECORDING), lambda world: world.reset("SaveIt", 4))


async def _reset(world: AndroidWorld):
    return await world.reset("SaveIt", 3)


BAD = {
    "no JSON": ({"raw": "Traceback (most recent call last):"}, BadReply, "no JSON object: b'Trace"),
    "no object": ({"raw": "[1]"}, BadReply, "no JSON object"),
    "another request's": ({"raw": json.dumps({"id": 9})}, BadReply, "reply to request 9"),
    "no observation": ({"request": RESET, "reply": {"goal": "x"}}, BadReply, "KeyError"),
    "no picture": (
        {"request": RESET, "reply": seen((0, 0, 0)) | {"png": "AAAA"}},
        BadReply,
        "no observation",
    ),
    "a node without box": (
        {"request": RESET, "reply": seen((0, 0, 0)) | {"nodes": [{"box": [1, 2]}]}},
        BadReply,
        "box",
    ),
    "a node with a wrong type": (
        {"request": RESET, "reply": seen((0, 0, 0)) | {"nodes": [{"box": [0] * 4, "text": 3}]}},
        BadReply,
        "text",
    ),
    "silence": ({"hang": True}, WorkerTimedOut, "no reply to reset within"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_lost_worker_has_a_name_and_is_ended(player, name):
    step, error, says = BAD[name]
    with pytest.raises(error, match=says):
        opened(player([step]), _reset, reply_s=1.0 if name == "silence" else 20.0)


def test_a_dead_worker_says_its_last_words(player, tmp_path):
    once = {"once": str(tmp_path / "once"), **RECORDING[0]}
    with pytest.raises(WorkerDied, match=r"(?s)during reset; exit code 7.*the emulator went away"):
        opened(player([once]), _reset)


def test_a_worker_that_is_gone_stays_gone(player):
    async def play(world: AndroidWorld):
        await world.reset("SaveIt", 3)
        world._kill()
        await world._process.wait()
        with pytest.raises(WorkerDied):
            await world.act(CLICK)
        with pytest.raises(WorkerLost):
            await world.reset("SaveIt", 3)

    opened(player(RECORDING), play)


def test_an_error_that_the_user_can_mend(player):
    reply = {"error": "no task 'SaveIt'; fix: one of A, B", "kind": "user"}
    with pytest.raises(UserError, match="AndroidWorld: no task 'SaveIt'"):
        opened(player([{"request": RESET, "reply": reply}]), _reset)


def test_terminate_reaches_no_device(player):
    async def play(world: AndroidWorld):
        await world.reset("SaveIt", 3)
        with pytest.raises(ValueError, match="terminate"):
            await world.act(Action("terminate", "done", status="success"))

    opened(player(RECORDING), play)


def test_close_ends_what_the_worker_started(player, tmp_path):
    pid = tmp_path / "pid"
    opened(player([{"child": str(pid), **RECORDING[0]}]), _reset)
    child = int(pid.read_text())
    for _ in range(100):  # an orphan is reaped by init, in its own time
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.02)
    os.kill(child, 9)
    pytest.fail("the worker's child outlived it")


def test_a_fleet_redoes_what_a_lost_worker_was_at(player, tmp_path):
    crash = {"once": str(tmp_path / "once"), **RECORDING[1]}
    recording = [RECORDING[0], crash, RECORDING[2]]
    start = State("SaveIt", 3)
    end = start.after(CLICK).after(Action("terminate", "done", status="success"))
    with android_world_fleet([player(recording)], halved, 20.0, 20.0) as fleet:
        [before] = fleet.observe([start])
        [after] = fleet.observe([end])
    assert isinstance(before, Observation) and isinstance(after, Observation)
    assert colour_of(before) == (255, 0, 0) and not before.done
    # terminate ends the episode with the device's verdict so far
    assert colour_of(after) == (0, 255, 0) and after.done and after.reward == 1.0
    assert fleet.counts["crashes"] == 1 and fleet.counts["resets"] == 2


def test_a_fleet_gives_an_emulator_up_and_uses_it_again(player):
    """Three worlds are opened on the one emulator, one after another, so each gave it back."""
    with android_world_fleet([player([{"raw": "no"}])], halved, 20.0, 20.0) as fleet:
        [broken] = fleet.observe([State("SaveIt", 3)])
    assert isinstance(broken, Broken) and "BadReply" in broken.reason
    assert fleet.counts["crashes"] == 3


def test_a_python_that_is_not_there():
    command = worker_command("/nowhere/python", 5554, 8554)
    with pytest.raises(UserError, match="/nowhere/python"):
        asyncio.run(open_android_world(command, halved))


def test_a_python_without_android_world():
    """Also that our own android_world.py, beside the worker, is not taken for the package."""
    command = worker_command(sys.executable, 5554, 8554)
    with pytest.raises(UserError, match="cannot import android_world"):
        asyncio.run(open_android_world(command, halved))


# The worker itself, on a stand-in for the package: what it calls is written to a file. Names and
# parameters as google-research/android_world has them.

STAND_IN = {
    "android_world/__init__.py": "",
    "android_world/env/__init__.py": "",
    "android_world/registry.py": """
        import random
        from android_world.env.adb_utils import note
        class SaveIt:
            start_on_home_screen = True
            @classmethod
            def set_device_time(cls, env): note("time")
            @classmethod
            def generate_random_params(cls): return {"drawn": random.randrange(10**6)}
            def __init__(self, params):
                self.goal = f"Save {params['drawn']} {params['seed']}"
            def initialize_task(self, env): note("initialize")
            def is_successful(self, env): return env.verdict
            def tear_down(self, env): note("tear down")
        class TaskRegistry:
            ANDROID_WORLD_FAMILY = "android_world"
            def get_registry(self, family): return {"SaveIt": SaveIt}
    """,
    "android_world/env/adb_utils.py": """
        import os, json
        def note(*what):
            with open(os.environ["CALLS"], "a") as file:
                file.write(json.dumps(what) + "\\n")
        def tap_screen(x, y, env, timeout_sec=None): note("tap", x, y)
        def type_text(text, env, timeout_sec=None): note("type", text)
        def launch_app(app_name, env): note("open", app_name)
        def press_keyboard_generic(keycode, env, timeout_sec=None): note("key", keycode)
        def issue_generic_request(args, env, timeout_sec=None): note("adb", *args)
        def generate_swipe_command(x0, y0, x1, y1, duration_ms=None):
            return ["swipe", x0, y0, x1, y1, duration_ms]
    """,
    "android_world/env/env_launcher.py": """
        import types
        from android_world.env.adb_utils import note
        class Pixels:
            shape = (80, 40, 3)
            def tobytes(self): return bytes([255, 0, 0]) * 3200
        class Box:
            x_min, y_min, x_max, y_max = 8, 16, 24, 32
        class UIElement:
            text, content_description, hint_text = "Save", None, None
            class_name, bbox_pixels = "android.widget.Button", Box()
            is_checkable = is_checked = is_editable = is_focused = is_long_clickable = None
            is_clickable = is_visible = True
        class Env:
            controller, logical_screen_size, verdict = "controller", (40, 80), 0.5
            def reset(self, go_home=False): note("reset", go_home)
            def get_state(self, wait_to_stabilize=False):
                print("something on stdout")
                return types.SimpleNamespace(pixels=Pixels(), ui_elements=[UIElement()])
            def close(self): note("close")
        def load_and_setup_env(console_port, adb_path, grpc_port):
            note("launch", console_port, adb_path, grpc_port)
            return Env()
    """,
}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    for name, text in STAND_IN.items():
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "package"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return lambda: [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


def test_the_worker_makes_the_calls_of_the_package(calls):
    async def play(world: AndroidWorld):
        seen = [await world.reset("SaveIt", 3)]
        for action in [
            CLICK,
            Action("long_press", "", coordinate=(5, 10), time=2.0),
            Action("swipe", "", coordinate=(10, 20), direction="up", distance="long"),
            Action("type", "", text="a b"),
            Action("open", "", text="Files"),
            Action("system_button", "", button="Back"),
            Action("system_button", "", button="Menu"),
            Action("wait", "", time=0.0),
        ]:
            seen.append(await world.act(action))
        seen.append(await world.reset("SaveIt", 3))
        return seen

    seen = opened(worker_command(sys.executable, 5556, 8556, "/opt/adb"), play)
    begin = [["time"], ["initialize"], ["reset", True]]
    assert calls() == [
        ["launch", 5556, "/opt/adb", 8556],
        *begin,
        ["tap", 11, 21],
        ["adb", "shell", "input", "swipe", "11", "21", "11", "21", "2000"],
        ["adb", "swipe", 21, 41, 21, 1, 500],  # half of 80 pixels up
        ["type", "a b"],
        ["open", "Files"],
        ["key", "KEYCODE_BACK"],
        ["key", "KEYCODE_MENU"],
        ["tear down"],
        *begin,
        ["tear down"],
        ["close"],
    ]
    # the same seed draws the same task; half of a success is none
    assert seen[0].goal == seen[-1].goal and seen[0].goal.endswith(" 3")
    assert all(each.reward == 0.0 and not each.done for each in seen)
    assert colour_of(seen[0]) == (255, 0, 0)
    assert seen[0].elements == (Element("button", "Save", (4, 8, 12, 16)),)


def test_the_worker_names_a_task_that_there_is_not(calls):
    with pytest.raises(UserError, match=r"no task 'Fly'; fix: one of SaveIt"):
        opened(worker_command(sys.executable, 5554, 8554), lambda world: world.reset("Fly", 0))


def test_the_worker_stands_alone():
    """It must run in a Python that has nothing of ours."""
    text = WORKER.read_text()
    assert "selfevolve_jax" not in "".join(
        line for line in text.splitlines() if line.lstrip().startswith(("import", "from"))
    )


def test_where_a_swipe_ends():
    def end(start, direction, distance):
        return android_worker.swipe_end(start, direction, distance, 1080, 2400)

    assert end([540, 1200], "up", "medium") == (540, 480)  # 0.3 of 2400 up
    assert end([540, 1200], "right", "short") == (702, 1200)  # 0.15 of 1080
    assert end([540, 1200], "left", "long") == (0, 1200)
    assert end([540, 2300], "down", "long") == (540, 2399)  # at the edge


def test_the_workers_png_is_one():
    rgb = bytes(range(2 * 3 * 3))
    with Image.open(io.BytesIO(android_worker.png(3, 2, rgb))) as shown:
        assert (shown.size, shown.mode, shown.tobytes()) == ((3, 2), "RGB", rgb)
