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
    last line that were cut off."""

    def __init__(self, run: str | os.PathLike[str], hide: Callable[[bytes], bytes]) -> None:
        self._run, self._hide = run_dir.absolute(run), hide
        with run_dir.disk_errors(self._run):
            self._run.mkdir(parents=True, exist_ok=True)
        self._log = events.Log(self._run / NAME)
        self.torn = self._log.torn
        self._usage, last = Usage(), 0
        try:
            for line in self._log.events:
                self._usage += _usage(line)
                last = max(last, line["call"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self._run / NAME} is damaged: a line is no call ({error}). Fix: restore the file."
            ) from error
        self._log.events.clear()  # the sum is kept, and the lines are on disk
        self._numbers = itertools.count(last + 1)
        self._lock = threading.Lock()

    @property
    def usage(self) -> Usage:
        """Of all calls in the log."""
        with self._lock:
            return self._usage

    def add(
        self, line: Mapping[str, Any], request: Mapping[str, Any], answer: Mapping[str, Any] | None
    ) -> Usage:
        """line: the fields from role to outcome. What this call cost. On disk when this returns;
        DiskError if the disk refuses, and the money is counted all the same."""
        usage = _usage(line)
        with self._lock:
            self._usage += usage
            number = next(self._numbers)
        path = self._run / FOLDER / f"{number // 1000:03d}" / f"{number:06d}.json.gz"
        with run_dir.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        line = {"call": number, **line, "file": str(path.relative_to(self._run))}
        whole = self._hide(json.dumps({**line, "request": request, "answer": answer}).encode())
        run_dir.write_bytes_atomic(path, gzip.compress(whole, compresslevel=1, mtime=0))
        self._log.append("call", **json.loads(self._hide(json.dumps(line).encode())))
        self._log.events.clear()
        return usage

    def close(self) -> None:
        self._log.close()


def _usage(line: Mapping[str, Any]) -> Usage:
    return Usage(1, line["tokens_in"], line["tokens_out"], line["dollars"])
