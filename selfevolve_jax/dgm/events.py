"""The event log: an append-only file that is the only truth about a DGM run. Scores, children and costs
are folds over it (archive.py).

RUN/events.jsonl, one JSON object a line, each with "event" and "time" (seconds since 1970):

    run          seed, excluded: {task or group: why}: first line of a run, and of each resume
    selected     generation, parents: [id, …]
    child        agent, parent, generation, slot, tree: commit | null, reason, entry, diagnosis, flags,
                 usage: {calls, tokens_in, tokens_out, dollars}, seconds,
                 files: folder of raw.txt and log.txt, relative to RUN
                 (agent 0, the first one: parent null, generation 0)
    evaluated    agent, task, seed, split, group, solved, partial, empty, reason,
                 tests: {name: bool}, usage, cpu_s, wall_s, files: folder of answer.txt and log.txt
    unavailable  what: "evaluation" | "child", agent, task, reason: an attempt that counts for nothing
    stopped      reason: a budget, the kill switch, the end; a resume may follow

A line is there once it is synced. A torn last line (the machine died while it was written) is cut off
when the log is opened, with a notice.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError

NAME = "events.jsonl"


def read(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """(events, bytes of a torn tail). UserError where a line before the last is damaged."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    whole = data.rfind(b"\n") + 1
    events = []
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise UserError(
                f"{path} line {number} is damaged. Fix: restore the file, or cut it off before there."
            )
        events.append(event)
    return events, len(data) - whole


class Log:
    """The log, open for appending; its methods may be called from many threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Cuts off a torn tail; `torn` is its length in bytes. UserError where another process has the
        log open: it may be writing what looks like a torn tail."""
        self._path = run_dir.absolute(path)
        self._lock = threading.Lock()
        with run_dir.disk_errors(self._path):
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            try:
                _claim(self._file, self._path)
                self.events, self.torn = read(self._path)
            except BaseException:
                self._file.close()
                raise
            if self.torn:
                self._file.truncate(self._path.stat().length - self.torn)
                os.fsync(self._file.fileno())

    def append(self, event: str, **fields: Any) -> dict[str, Any]:
        """Written and synced when this returns. A write that the disk refuses changes nothing."""
        line = {"event": event, "time": round(time.time(), 3), **run_dir.jsonable(fields)}
        data = (json.dumps(line) + "\n").encode()
        with self._lock, run_dir.disk_errors(self._path):
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(data) != len(data):
                    raise OSError(28, os.strerror(28))
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise
            self.events.append(line)
        return line

    def close(self) -> None:
        self._file.close()


def _claim(file: Any, path: os.PathLike[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path} is in use: another process is at work on this run. Fix: wait for it, or end it."
        ) from None
    except OSError:
        pass  # a file system without locks: whoever starts two must know
