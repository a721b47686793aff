"""Steps a second of MiniWoB++ in Chromium: an action, the element list, the verdict and a screenshot.

    python tests/ui_genie/bench_miniwob.py [seconds a setting]

Two figures for 1, 4 and 8 tabs: actions alone, on episodes that are under way, and states as a beam
search asks for them: each one action beyond its parent, several of the same parent, so that most of
them start the page over and replay. A step is an action on a page; a replayed one counts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import State
from selfevolve_jax.ui_genie.miniwob import miniwob_fleet

TASKS = ("click-checkboxes", "enter-text", "click-option", "login-user")


def clicks(n: int, seed: int) -> tuple[Action, ...]:
    """On the upper left of the page, where there is something and nothing that ends the episode."""
    rng = np.random.default_rng([n, seed])
    points = zip(rng.integers(0, 8, n).tolist(), rng.integers(50, 60, n).tolist(), strict=True)
    return tuple(Action("click", "", coordinate=point) for point in points)


def straight(tabs: int) -> Callable[[int], Sequence[State]]:
    def ask(turn: int) -> Sequence[State]:
        length = 5 * (turn % 10)
        return [State(TASKS[k % 4], k, clicks(50, k)[: length + 5]) for k in range(tabs)]

    return ask


def branching(tabs: int) -> Callable[[int], Sequence[State]]:
    del tabs  # as many states whatever the tabs

    def ask(turn: int) -> Sequence[State]:
        parents = [State(TASKS[k % 4], turn // 4, clicks(turn % 4, k)) for k in range(8)]
        return [parent.after(action) for parent in parents for action in clicks(5, turn)]

    return ask


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for tabs in (1, 4, 8):
        with miniwob_fleet(tabs) as fleet:
            for name, asks in (("actions alone", straight), ("beam search", branching)):
                ask = asks(tabs)
                fleet.observe(ask(0))  # the browser, its tabs and the pages are there
                before, start, turn = fleet.counts.copy(), time.monotonic(), 1
                while time.monotonic() - start < seconds:
                    fleet.observe(ask(turn))
                    turn += 1
                took = time.monotonic() - start
                steps = fleet.counts["steps"] - before["steps"]
                resets = fleet.counts["resets"] - before["resets"]
                print(
                    f"{tabs} tabs, {name}: {steps / took:.0f} steps/s, {resets / took:.0f} resets/s"
                    f" (load {os.getloadavg()[0]:.1f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
