"""Help for the tests of coding agents: a box of plain processes for code that we trust (our own agent),
a benchmark of one task, and the answers that a model would give."""

from __future__ import annotations

import contextlib
import copy
import json
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevolve_jax.dgm.contract import Parent, Result, Session, Task, Tree, Usage
from selfevolve_jax.dgm.diagnosis import FIELDS
from selfevolve_jax.dgm.sandbox.job import SOCKET, WORK, Job, Outcome
from tests.openai_server import OpenAIServer, _Handler

TASK = Task("p1", "train", "g")


def call(tool: str, id: str = "c1", **arguments: Any) -> dict[str, Any]:
    """A message that calls a tool, as OpenAI has it."""
    function = {"name": tool, "arguments": json.dumps(arguments)}
    calls = [{"id": id, "type": "function", "function": function}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def diagnosed(**changes: Any) -> str:
    """A diagnosis as a model answers it."""
    return json.dumps({name: f"my {name}" for name in FIELDS} | changes)


def parent(tree: Tree, *results: Result, maker: Tree | None = None) -> Parent:
    results = results or (failed(),)
    attempts = [(Task(f"p{i}", "train", "g"), r) for i, r in enumerate(results, 1)]
    return Parent(7, tree, maker or tree, attempts)


def failed(**changes: Any) -> Result:
    fields: dict[str, Any] = {"solved": False, "partial": 0.0, "empty": False, "reason": "1 of 2"}
    tests = {"test_good": True, "test_bad": False}
    return Result(**fields | {"log": "the log", "answer": "x = 1", "tests": tests} | changes)


class OneTask:
    """A benchmark whose description is known."""

    name, tasks, excluded = "one", (TASK,), {}

    def describe(self, task: Task) -> str:
        return f"describes {task.id}"

    def evaluate(self, *_: Any) -> Result:
        raise AssertionError("nothing here evaluates")


class PlainProcesses:
    """A Box that holds nothing: the job's argv in a temporary folder that stands for /work, with the
    socket's place written into the agent's code. keep: what every job was."""

    name = "plain processes"
    unenforced = ("all of them",)

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            socket = (job.socket or "/no/socket").encode()
            for path, data in job.files.items():
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                (work / path).write_bytes(data.replace(SOCKET.encode(), socket))
            argv = [part.replace(WORK, folder, 1) for part in job.argv]
            env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, **job.env}
            started = time.monotonic()
            run = subprocess.run(
                argv, cwd=work, env=env, input=job.stdin, capture_output=True, timeout=60
            )
            return Outcome(
                run.returncode,
                "",
                run.stdout,
                run.stderr,
                False,
                _collected(work, job, socket),
                (),
                time.monotonic() - started,
                0.0,
            )

    def close(self) -> None:
        pass


def _collected(work: Path, job: Job, socket: bytes) -> dict[str, bytes]:
    files = {}
    for wanted in job.collect:
        place = work / wanted
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file():
                data = path.read_bytes().replace(socket, SOCKET.encode())
                files[path.relative_to(work).as_posix()] = data
    return files


class Played:
    """Models that play recorded answers, with no gateway between: sessions are an HTTP server on a unix
    socket, chats take the next answer. seen: the bodies of the sessions' requests. asked: the chats."""

    def __init__(self, answers: Sequence[Any] = (), chats: Sequence[str] = ()) -> None:
        self.server = OpenAIServer(answers, models=("default",))
        self.chats = list(chats)
        self.asked: list[tuple[str, list[Any], str]] = []

    @property
    def seen(self) -> list[dict[str, Any]]:
        return [request["body"] for request in self.server.seen]

    @contextlib.contextmanager
    def session(self, role: str, purpose: str) -> Iterator[Session]:
        with tempfile.TemporaryDirectory() as folder:
            fields = {"outer": self.server, "disable_nagle_algorithm": False}  # that is TCP's
            handler = type("Handler", (_Handler,), fields)
            http = _UnixServer(f"{folder}/s", handler)
            thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield _PlayedSession(f"{folder}/s", self.server)
            finally:
                self.server.closing.set()
                http.shutdown()
                http.server_close()
                thread.join()

    def chat(self, role: str, messages: Sequence[Any], purpose: str) -> tuple[str, Usage]:
        self.asked.append((role, copy.deepcopy(list(messages)), purpose))
        return self.chats.pop(0), Usage(1, 100, 10, 0.5)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@dataclass(frozen=True)
class _PlayedSession:
    socket: str
    server: OpenAIServer

    def usage(self) -> Usage:
        return Usage(calls=len(self.server.seen))
