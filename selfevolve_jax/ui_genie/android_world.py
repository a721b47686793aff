"""AndroidWorld (arXiv 2405.14573) as an environment: an emulator over adb, in a process of its own.

EXERCISED ONLY AGAINST A RECORDED DEVICE. The tests play a recording of requests and replies through
the real subprocess protocol, and run the worker on a stand-in for android_world. Nobody here has run
it with the package and an emulator, which need KVM; the calls follow google-research/android_world as
published (android_world/env/interface.py, env_launcher.py, adb_utils.py, task_evals/task_eval.py).

android_world is no dependency: it has its own Python, where android_worker.py runs, started by path.
One worker holds one emulator. What to know of it as an environment:

- A device lives in real time, so a replayed prefix leads to about the same screen, not to the same
  pixels. A Fleet that branches here is not the pure function of states that it is on MiniWoB++.
- AndroidWorld ends no episode by itself: `done` is never true, and `reward` is the task's verdict on
  the device as it is now (1 for a whole success, else 0), so that it stands when the agent terminates.
- The schema has no action that answers, so tasks that ask for an answer cannot be done.
- Screens are resized to the frame, and coordinates scaled back to the middle of what they stand for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from PIL import Image

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import accessibility
from selfevolve_jax.ui_genie.accessibility import Node
from selfevolve_jax.ui_genie.actions import Action, Frame, as_record
from selfevolve_jax.ui_genie.android_control import scaled_box
from selfevolve_jax.ui_genie.environment import Element, Fleet, Observation

WORKER = Path(__file__).with_name("android_worker.py")
_LINE_BYTES = 64 << 20  # of one reply: a screenshot of a tablet in base64 has some 10 MB
_END_S = 3.0  # for a worker to end by itself; a Fleet waits 5 s for the whole of close()
_FIELDS = {field.name: field.type for field in dataclasses.fields(Node)}


class WorkerLost(RuntimeError):
    """The worker or its device is lost, in one of the four ways below: to a Fleet, a crash. The worker
    has been ended, and a new one has to be opened."""


class WorkerDied(WorkerLost):
    """The process ended. The message has the end of what it wrote to stderr."""


class WorkerTimedOut(WorkerLost):
    """No reply within the limit."""


class BadReply(WorkerLost):
    """A reply that is no JSON, to another request, or without what was asked for."""


class DeviceError(WorkerLost):
    """The worker reports that a call to the emulator failed."""


def worker_command(
    python: str, console_port: int, grpc_port: int, adb: str = "adb"
) -> tuple[str, ...]:
    """The command line of a worker. python: the interpreter that has android_world. console_port and
    grpc_port: of the running emulator (the first has 5554 and 8554 if started with -grpc 8554)."""
    ports = ("--console-port", str(console_port), "--grpc-port", str(grpc_port))
    return (python, str(WORKER), *ports, "--adb", os.path.expanduser(adb))


class AndroidWorld:
    """One emulator behind the Environment protocol. Open with `open_android_world`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        log: IO[bytes],
        frame_of: Callable[[Frame], Frame],
        reply_s: float,
    ) -> None:
        self._process, self._log, self._frame_of = process, log, frame_of
        self._reply_s, self._asked = reply_s, 0
        self._screen: Frame | None = None
        self.tasks: tuple[str, ...] = ()  # the names of all, once it is ready

    async def reset(self, task: str, seed: int, passing: bool = False) -> Observation:
        """Raises: UserError: no such task. WorkerLost."""
        return self._observation(await self._ask(do="reset", task=task, seed=seed))

    async def act(self, action: Action, passing: bool = False) -> Observation:
        """Raises: ValueError: terminate, which reaches no device. WorkerLost."""
        if action.action == "terminate":
            raise ValueError("terminate is the agent's own word and reaches no device")
        record = as_record(action)
        del record["action_desc"]  # what the agent says of it is nothing to the device
        if action.coordinate is not None:
            record["coordinate"] = self._on_screen(action.coordinate)
        return self._observation(await self._ask(do="act", action=record))

    async def close(self) -> None:
        """Asks the worker to tear its task down and end; ends it where it does not."""
        try:
            with contextlib.suppress(WorkerLost, UserError, TimeoutError):
                async with asyncio.timeout(_END_S):
                    await self._ask(do="close")
                    await self._process.wait()
        finally:
            await self._end()
            self._log.close()

    async def ready(self) -> None:
        """Waits until the worker has its emulator. Raises: UserError: no android_world. WorkerLost."""
        reply = await self._reply("start")
        tasks = reply.get("tasks", [])
        named = isinstance(tasks, list) and all(isinstance(task, str) for task in tasks)
        if reply.get("ready") is not True or not named:
            raise await self._lost(
                BadReply, "the first line is not {'ready': true, 'tasks': [...]}"
            )
        self.tasks = tuple(tasks)

    def _on_screen(self, coordinate: tuple[int, int]) -> list[int]:
        screen = self._screen
        if screen is None:
            raise ValueError("an action before the first reset")
        frame = self._frame_of(screen)
        (x, y), (w, h) = coordinate, (frame.width, frame.height)
        # The middle of the pixel: rounding down would pull every touch to the upper left.
        return [(2 * x + 1) * screen.width // (2 * w), (2 * y + 1) * screen.height // (2 * h)]

    async def _ask(self, **request: Any) -> dict[str, Any]:
        self._asked += 1
        line = json.dumps({"id": self._asked, **request}) + "\n"
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode())
            await self._process.stdin.drain()
        except (OSError, RuntimeError):  # the pipe or its transport is closed
            raise await self._lost(WorkerDied, f"before {request['do']}") from None
        reply = await self._reply(request["do"])
        if reply.get("id") != self._asked:
            said = f"reply to request {reply.get('id')!r}, not to {self._asked} ({request['do']})"
            raise await self._lost(BadReply, said)
        return reply

    async def _reply(self, to: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._reply_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            said = f"no reply to {to} within {self._reply_s:g} s"
            raise await self._lost(WorkerTimedOut, said) from None
        except ValueError:  # asyncio's way to say that a line is longer than its limit
            said = f"the reply to {to} is over {_LINE_BYTES} bytes"
            raise await self._lost(BadReply, said) from None
        if not line.endswith(b"\n"):
            raise await self._lost(WorkerDied, f"during {to}")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise await self._lost(BadReply, f"the reply to {to} is no JSON object: {line[:80]!r}")
        if "error" in reply:
            if reply.get("kind") == "user":
                raise UserError(f"AndroidWorld: {reply['error']}")
            raise await self._lost(DeviceError, f"{to}: {reply['error']}")
        return reply

    def _observation(self, reply: dict[str, Any]) -> Observation:
        try:
            goal, reward = reply["goal"], reply["reward"]
            if not isinstance(goal, str) or isinstance(reward, bool):
                raise TypeError("a goal that is no text or a reward that is no number")
            picture = Image.open(io.BytesIO(base64.b64decode(reply["png"], validate=True)))
            picture = picture.convert("RGB")
            nodes = [_node(record) for record in reply["nodes"]]
            reward = float(reward)
        except Exception as error:  # decoders of damaged pictures raise all kinds
            self._kill()
            raise BadReply(
                f"a reply is no observation ({type(error).__name__}: {error})"
            ) from error
        self._screen = screen = Frame(*picture.size)
        frame = self._frame_of(screen)
        return Observation(
            goal=goal,
            screenshot=_resized_png(picture, frame),
            frame=frame,
            elements=tuple(
                Element(e.kind, e.text, scaled_box(e.box, screen, frame), e.focused, e.checked)
                for e in accessibility.elements(nodes, screen.width, screen.height)
            ),
            done=False,
            reward=reward,
        )

    async def _lost(self, kind: type[WorkerLost], what: str) -> WorkerLost:
        await self._end()
        tail = ""
        if not self._log.closed:
            self._log.seek(max(self._log.seek(0, os.SEEK_END) - 600, 0))
            tail = self._log.read().decode(errors="replace").strip()
        code = self._process.returncode
        said = f"AndroidWorld's worker ({what}; exit code {code})"
        return kind(f"{said}: {tail}" if tail else said)

    async def _end(self) -> None:
        self._kill()
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()  # or its transport complains once the loop is gone
            with contextlib.suppress(OSError):
                await self._process.stdin.wait_closed()

    def _kill(self) -> None:
        # The whole group: adb's own children would outlive the worker otherwise.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


async def open_android_world(
    command: Sequence[str],
    frame_of: Callable[[Frame], Frame],
    reply_s: float = 180.0,
    start_s: float = 300.0,
) -> AndroidWorld:
    """Starts a worker (`worker_command`) and waits until it has its emulator.

    frame_of: screen → frame that the model sees (android_control.resized). reply_s: for a reset or an
    action, which wait for the screen to settle; start_s: for the start.

    Raises: UserError: no such interpreter, or it has no android_world. WorkerLost.
    """
    log = tempfile.TemporaryFile()  # noqa: SIM115  # read when the worker is lost
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=_LINE_BYTES,
            start_new_session=True,
        )
    except OSError as error:
        log.close()
        raise UserError(
            f"AndroidWorld's Python {command[0]!r} cannot be started: {error.strerror}. Fix: the path "
            "of an interpreter with google-research/android_world"
        ) from error
    world = AndroidWorld(process, log, frame_of, start_s)
    try:
        await world.ready()
    except BaseException:  # also a Fleet's limit, which cancels
        await world._end()
        raise
    world._reply_s = reply_s
    return world


def android_world_fleet(
    commands: Sequence[Sequence[str]],
    frame_of: Callable[[Frame], Frame],
    reply_s: float = 180.0,
    start_s: float = 300.0,
) -> Fleet:
    """A Fleet over several emulators, one `worker_command` each. A worker that is lost is started anew
    on its emulator."""
    free = deque(commands)

    async def open_one() -> _Leased:
        command = free.popleft()
        try:
            world = await open_android_world(command, frame_of, reply_s, start_s)
        except BaseException:
            free.append(command)
            raise
        return _Leased(world, lambda: free.append(command))

    # Longer than the adapter's own limits, whose errors say more.
    return Fleet(open_one, len(commands), timeout_s=max(reply_s, start_s) + 10)


class _Leased:
    """A world whose emulator is free again once it is closed."""

    def __init__(self, world: AndroidWorld, give_back: Callable[[], None]) -> None:
        self._world, self._give_back = world, give_back
        self.reset, self.act = world.reset, world.act

    async def close(self) -> None:
        try:
            await self._world.close()
        finally:
            self._give_back()


def _node(record: Any) -> Node:
    """A node of a reply. ValueError or TypeError for one that is not as in the protocol."""
    box = record["box"]
    if not isinstance(box, list) or len(box) != 4 or any(type(side) is not int for side in box):
        raise ValueError(f"a node's box is {box!r}")
    for name, value in record.items():
        if name != "box" and str(type(value).__name__) != _FIELDS.get(name):
            raise ValueError(f"a node's {name} is {value!r}")
    return Node(**{**record, "box": (box[0], box[1], box[2], box[3])})


def _resized_png(picture: Image.Image, frame: Frame) -> bytes:
    """Bicubic, as the model's own preprocessing resizes (images.preprocess)."""
    size = (frame.width, frame.height)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()
