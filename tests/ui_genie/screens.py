"""An environment without a browser, that can crash, hang, or be slow, as a test asks."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.environment import Fleet, Observation, State

FRAME = Frame(160, 210)


def tap(n: int, desc: str = "") -> Action:
    return Action("click", desc, coordinate=(n, n))


def at(task: str, seed: int, *taps: int) -> State:
    return State(task, seed, tuple(tap(n) for n in taps))


def expected(state: State) -> Observation:
    """What an undisturbed screen shows: the taps so far; a tap of 9 ends the episode, with the number
    of taps as the reward."""
    taps = [a.coordinate[0] for a in state.actions if a.coordinate is not None]
    taps = taps[: taps.index(9) + 1] if 9 in taps else taps
    over = 9 in taps
    shown = f"{state.task} {state.seed} {taps}"
    return Observation(state.task, shown.encode(), FRAME, (), over, float(len(taps)) * over)


@dataclass
class World:
    """What the screens of a fleet share. log: every call, as (screen, what). faults: at how many more
    calls of that name something happens: ("crash" | "hang" | "slow", "reset" | "act" | "open")."""

    log: list[tuple[int, str]] = field(default_factory=list)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    opened: int = 0
    closed: int = 0
    at_once: int = 0
    most_at_once: int = 0

    async def open(self) -> Screen:
        await self.fault("open")
        self.opened += 1
        return Screen(self, self.opened)

    async def fault(self, call: str) -> None:
        for kind in ("crash", "hang", "slow"):
            if self.faults[kind, call] > 0:
                self.faults[kind, call] -= 1
                if kind == "crash":
                    raise ConnectionError("the browser is gone")
                await asyncio.sleep(3600 if kind == "hang" else 0.05)

    def calls(self, what: str) -> list[str]:
        return [call for _, call in self.log if call.startswith(what)]


class Screen:
    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.state: State | None = None

    async def reset(self, task: str, seed: int, passing: bool = False) -> Observation:
        if task == "unknown":
            raise UserError("There is no task 'unknown'.")
        self.world.log.append((self.number, f"reset {task} {seed}"))
        await self._call("reset")
        self.state = State(task, seed)
        return self._seen(passing)

    async def act(self, action: Action, passing: bool = False) -> Observation:
        assert self.state is not None
        assert action.coordinate is not None, f"{action.action} reached the screen"
        self.world.log.append((self.number, f"act {action.coordinate[0]}"))
        await self._call("act")
        self.state = self.state.after(action)
        return self._seen(passing)

    def _seen(self, passing: bool) -> Observation:
        assert self.state is not None
        seen = expected(self.state)
        return replace(seen, screenshot=b"") if passing and not seen.done else seen

    async def close(self) -> None:
        self.world.closed += 1

    async def _call(self, call: str) -> None:
        self.world.at_once += 1
        self.world.most_at_once = max(self.world.most_at_once, self.world.at_once)
        try:
            await asyncio.sleep(0)
            await self.world.fault(call)
        finally:
            self.world.at_once -= 1


def fleet(world: World, n: int = 2, timeout_s: float = 0.5) -> Fleet:
    return Fleet(world.open, n, timeout_s)


def undisturbed(n: int = 2) -> Fleet:
    """For another process, which makes its own world."""
    return fleet(World(), n)


two_screens = partial(undisturbed, 2)
