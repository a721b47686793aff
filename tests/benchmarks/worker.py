"""A peer's side of the protocol: one JSON object a line, asked on stdin and answered on the file
descriptor that the first argument names.

    {"do": "rollout", ...}  →  {"seconds": 41.2, ...}  or  {"error": "RuntimeError: ..."}

Run by the peer's own Python, so it imports nothing of this project. Libraries may print what they like.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


def serve(handlers: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Answers until stdin ends. An exception in a handler is that question's answer."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = handlers[asked.pop("do")](**asked)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


class Paced:
    """A training loop of another project, made to wait before each step until it is told to go.

    The loop runs in a thread, and calls `wait` where a step begins and `done` where it has ended;
    `step()` lets it take one step and gives what `done` was told, with the seconds between the two.
    """

    def __init__(self, loop: Callable[[], None]):
        self._go: queue.Queue[None] = queue.Queue()
        self._ended: queue.Queue[Any] = queue.Queue()
        self._began = 0.0
        self._loop = loop
        self._started = False

    def _run(self) -> None:
        try:
            self._loop()
            self._ended.put(RuntimeError("the training loop ended by itself"))
        except Exception as error:
            traceback.print_exc()
            self._ended.put(error)

    def wait(self) -> None:
        self._go.get()
        self._began = time.perf_counter()

    def done(self, **more: Any) -> None:
        self._ended.put({"seconds": time.perf_counter() - self._began, **more})

    def step(self) -> dict[str, Any]:
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, daemon=True).start()
        self._go.put(None)
        answer = self._ended.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


def useful(rows: list[list[int]], stop: int) -> list[int]:
    """Tokens up to and including the first stop token of each row, or all of them."""
    return [row.index(stop) + 1 if stop in row else len(row) for row in rows]


def reward(text: str) -> float:
    """Costs nothing and differs from sample to sample: the share of digits."""
    return sum(c.isdigit() for c in text) / max(len(text), 1)
