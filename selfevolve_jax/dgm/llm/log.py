"""The log of calls: what was asked, what came back, what it cost. The truth about money.

    RUN/calls.jsonl                    a line a call, as events.py writes them ("event": "call"):
                                       call (its number), role, purpose, model, tokens_in, tokens_out,
                                       dollars, estimated, seconds, attempts, outcome, file
    RUN/calls/000/000123.json.gz       the whole of call 123: its line, and "request" and "answer"

outcome: "ok", "empty" (no text and no tool call), "cut" (too long to keep), "refused: …", "down: …" or
"misplaced: …". A call that the machine's death interrupts leaves no line, and its cost is lost. Budgets
count what is here, so they hold over a resume.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from selfevolve_jax import run_dir
from selfevolve_jax.dgm import events
from selfevolve_jax.dgm.contract import Usage
from selfevolve_jax.errors import UserError

NAME, FOLDER = "calls.jsonl", "calls"


class CallLog:
    """May be used from many threads. hide: takes the keys out of what is written. torn: bytes of a torn
    last line, which is cut off. Nothing is written before the first call that is not held back."""

    def __init__(self, run: str | os.PathLike[str], hide: Callable[[bytes], bytes]) -> None:
        self._run, self._hide = run_dir.absolute(run), hide
        lines, self.torn = events.read(self._run / NAME)
        self._usage, last = Usage(), 0
        try:
            for line in lines:
                self._usage += _usage(line)
                last = max(last, line["call"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self._run / NAME} is damaged: a line is no call ({error}). Fix: restore the file."
            ) from error
        self._numbers = itertools.count(last + 1)
        self._lock = threading.Lock()
        self._file: events.Log | None = None
        self._held: list[tuple[Any, ...]] = []

    @property
    def usage(self) -> Usage:
        """Of all calls in the log."""
        with self._lock:
            return self._usage

    def add(
        self,
        line: Mapping[str, Any],
        request: Mapping[str, Any],
        answer: Mapping[str, Any] | None,
        hold: bool = False,
    ) -> Usage:
        """line: the fields from role to outcome. What this call cost. On disk when this returns;
        DiskError if the disk refuses, and the money is counted all the same. hold: it is counted, and
        written once `write_held` is called."""
        usage = _usage(line)
        with self._lock:
            self._usage += usage
            number = next(self._numbers)
            if hold:
                self._held.append((number, line, request, answer))
        if not hold:
            self._write(number, line, request, answer)
        return usage

    def write_held(self) -> None:
        with self._lock:
            held, self._held = self._held, []
        for call in held:
            self._write(*call)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(
        self,
        number: int,
        line: Mapping[str, Any],
        request: Mapping[str, Any],
        answer: Mapping[str, Any] | None,
    ) -> None:
        path = self._run / FOLDER / f"{number // 1000:03d}" / f"{number:06d}.json.gz"
        with run_dir.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        line = {"call": number, **line, "file": str(path.relative_to(self._run))}
        whole = self._hide(json.dumps({**line, "request": request, "answer": answer}).encode())
        run_dir.write_bytes_atomic(path, gzip.compress(whole, compresslevel=1, mtime=0))
        with self._lock:
            if self._file is None:
                self._file = events.Log(self._run / NAME)
            self._file.append("call", **json.loads(self._hide(json.dumps(line).encode())))
            self._file.events.clear()  # the sum is kept, and the lines are on disk


def _usage(line: Mapping[str, Any]) -> Usage:
    return Usage(1, line["tokens_in"], line["tokens_out"], line["dollars"])
