"""Screens to act on, and a fleet of them behind one pure function: states in, observations out.

An episode is a task, a seed and the actions so far (`State`), and nothing else: replaying them leads
to the same screen again. So exploration may branch anywhere, a screen that died is redone from its
state, and a run that was killed goes on with the states that are on disk. Which screen plays what is
the fleet's affair alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import Action, Frame

GRID = 8  # pixels between the places that an element may be pressed at
ATTEMPTS = 3  # of a state, before it is given up as Broken
_CLOSING_S = 5.0  # for a screen that may hang: then it is left to its owner


@dataclass(frozen=True)
class Element:
    """One thing on the screen that could be acted on or read. kind: button, link, input, checkbox,
    text, …; text: what it shows, or its value; box: left, top, right, bottom in pixels of the frame,
    the last two exclusive, so that a click at the middle (rounded down) hits it."""

    kind: str
    text: str
    box: tuple[int, int, int, int]
    focused: bool = False
    checked: bool | None = None

    @property
    def centre(self) -> tuple[int, int]:
        left, top, right, bottom = self.box
        return (left + right) // 2, (top + bottom) // 2

    @property
    def name(self) -> str:
        """What it is called: by what it shows, or by its kind where it shows nothing."""
        return self.text or self.kind

    @property
    def place(self) -> tuple[int, int]:
        """Where to press it: the centre, moved to the nearest multiples of GRID that the box holds, so
        that a small model has few places to know; in a direction that has none there, the centre's."""
        left, top, right, bottom = self.box
        x, y = self.centre
        return _on_grid(x, left, right), _on_grid(y, top, bottom)


def _on_grid(middle: int, low: int, high: int) -> int:
    """The multiple of GRID nearest to the middle, if it lies in [low, high), else the middle."""
    nearest = (middle + GRID // 2) // GRID * GRID
    return nearest if low <= nearest < high else middle


@dataclass(frozen=True)
class Observation:
    """What is seen in a state. screenshot: a PNG of the frame's size. done: the episode is over.
    reward: the environment's own verdict, 0 until it is done; see `won`. The verdict is
    gold, for evaluation: nothing that learns without labels may look at it."""

    goal: str
    screenshot: bytes
    frame: Frame
    elements: tuple[Element, ...]
    done: bool
    reward: float


def won(seen: Observation) -> bool:
    """Whether the environment calls the episode a success: its whole reward. Some pages give a part of
    it for a part of the work, such as most of the boxes ticked, and that is none."""
    return seen.done and seen.reward >= 1


@dataclass(frozen=True)
class Broken:
    """In place of an observation: the state could not be reached, ATTEMPTS times in a row. One page
    that never loads must not stop a round of hundreds of episodes, so this is a value and not an
    error; the caller leaves the episode out and counts it."""

    reason: str


@dataclass(frozen=True)
class State:
    """Where an episode is: replaying the actions from the seed leads there. `terminate` is the
    agent's own word and may only be the last action: it ends the episode and never reaches the
    environment."""

    task: str
    seed: int
    actions: tuple[Action, ...] = ()

    def __post_init__(self) -> None:
        for i, action in enumerate(self.actions[:-1]):
            if action.action == "terminate":
                raise ValueError(
                    f"action {i} of {self.task}, seed {self.seed}, is terminate: {self}"
                )

    def after(self, action: Action) -> State:
        return replace(self, actions=(*self.actions, action))


class Environment(Protocol):
    """One screen. A task that there is not is a UserError; any other exception, and no answer within
    the fleet's limit, mean that this screen is lost. passing: the screen is on its way to a state, and
    unless the episode is over, nobody will look at the observation's screenshot and elements."""

    async def reset(self, task: str, seed: int, passing: bool = False) -> Observation: ...

    async def act(self, action: Action, passing: bool = False) -> Observation: ...

    async def close(self) -> None: ...


@dataclass(eq=False)
class _Screen:
    """environment: None before the first use and after a loss. at: the state that it shows, None
    where that is unknown; seen: what it shows."""

    environment: Environment | None = None
    at: State | None = None
    seen: Observation | None = None


class _Hung(Exception):
    """No answer within the limit."""


@contextlib.asynccontextmanager
async def _limit(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as error:
        if limit.expired():  # and not a timeout of the environment's own, which is its failure
            raise _Hung(f"no answer within {seconds:g} s") from error
        raise


class Fleet:
    """n screens behind one pure function of states.

    open_environment: opens a screen, called in the fleet's own event loop (a thread of its own).
    timeout_s: for one reset or one action. opening_s: for opening a screen, timeout_s without one.
    counts: "steps" (actions played), "replays" (those of them that are not their state's last one: the
    way there), "resets", "crashes", "timeouts", "broken"; open_environment may share it and count on
    its own. closing: called in the loop when the fleet closes, after its screens.
    """

    def __init__(
        self,
        open_environment: Callable[[], Awaitable[Environment]],
        n: int,
        timeout_s: float = 20.0,
        counts: Counter[str] | None = None,
        opening_s: float | None = None,
        closing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        if n < 1:
            raise UserError(f"A fleet of {n} screens: give 1 or more.")
        self.counts: Counter[str] = Counter() if counts is None else counts
        self._open, self._closing = open_environment, closing
        self._timeout_s = timeout_s
        self._opening_s = timeout_s if opening_s is None else opening_s
        self._screens = [_Screen() for _ in range(n)]
        self._busy = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)
        self._thread.start()

    def observe(self, states: Sequence[State]) -> list[Observation | Broken]:
        """What is seen in each state, in the order asked. A state that is asked twice is played once;
        a screen that stands at a state's prefix goes on from there, else one resets and replays. A
        screen that crashes or hangs is replaced and its state redone.

        Raises:
            UserError: an unknown task, or what the environment needs is not installed.
        """
        with self._busy:
            job = asyncio.run_coroutine_threadsafe(self._observe(states), self._loop)
            try:
                return job.result()
            except BaseException:
                job.cancel()  # such as Ctrl-C here: the screens must not go on in the background
                raise

    def close(self) -> None:
        """Closes the screens and ends the thread. A second call does nothing."""
        with self._busy:
            if not self._thread.is_alive():
                return
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _observe(self, states: Sequence[State]) -> list[Observation | Broken]:
        seen: dict[State, Observation | Broken] = {}
        # terminate ends an episode on the screen before it
        wanted = _Wanted(on_screen(state) for state in states)
        first = wanted.assign(self._screens)

        async def work(screen: _Screen) -> None:
            state = first.get(screen) or wanted.take(screen.at)
            while state is not None:
                seen[state] = await self._reach(screen, state)
                state = wanted.take(screen.at)

        tasks = [asyncio.create_task(work(screen)) for screen in self._screens]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [ended(state, seen[on_screen(state)]) for state in states]

    async def _reach(self, screen: _Screen, state: State) -> Observation | Broken:
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                return await self._play(screen, state)
            except (UserError, asyncio.CancelledError):
                await self._lose(screen)
                raise
            except _Hung as error:
                self.counts["timeouts"] += 1
                reason = str(error)
            except Exception as error:  # whatever a lost browser makes its driver raise
                self.counts["crashes"] += 1
                reason = f"{type(error).__name__}: {error}"
            await self._lose(screen)
        self.counts["broken"] += 1
        where = f"task {state.task}, seed {state.seed}, after {len(state.actions)} actions"
        return Broken(f"{where}: {reason} ({ATTEMPTS} times)")

    async def _play(self, screen: _Screen, state: State) -> Observation:
        at, seen = screen.at, screen.seen
        # until the call returns nobody knows what the screen shows
        screen.at = screen.seen = None
        if screen.environment is None:
            async with _limit(self._opening_s):
                screen.environment = await self._open()
        if at is None or seen is None or not _is_prefix(at, state):
            async with _limit(self._timeout_s):
                seen = await screen.environment.reset(state.task, state.seed, bool(state.actions))
            at = State(state.task, state.seed)
            self.counts["resets"] += 1
        for action in state.actions[len(at.actions) :]:
            # nothing happens after the end: the terminal screen stays
            if not seen.done:
                passing = len(at.actions) + 1 < len(state.actions)
                async with _limit(self._timeout_s):
                    seen = await screen.environment.act(action, passing)
                self.counts["steps"] += 1
                if passing:
                    self.counts["replays"] += 1
            at = at.after(action)
        screen.at, screen.seen = at, seen
        return seen

    async def _lose(self, screen: _Screen) -> None:
        environment, screen.environment, screen.at, screen.seen = (
            screen.environment,
            None,
            None,
            None,
        )
        if environment is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSING_S):
                    await environment.close()

    async def _close(self) -> None:
        await asyncio.gather(*(self._lose(screen) for screen in self._screens))
        if self._closing is not None:
            with contextlib.suppress(Exception):
                await self._closing()


class _Wanted:
    """The states still to be played."""

    def __init__(self, states: Iterable[State]) -> None:
        # task -> seed -> states. A task that was begun goes to the end.
        self._left: dict[str, dict[int, list[State]]] = {}
        # the longest way first: a short one at the end leaves fewer screens idle
        for state in sorted(dict.fromkeys(states), key=lambda s: -len(s.actions)):
            self._left.setdefault(state.task, {}).setdefault(state.seed, []).append(state)

    def assign(self, screens: Sequence[_Screen]) -> dict[_Screen, State]:
        """What each screen plays first: every state goes to the screen that stands at its longest
        prefix, as far as one screen can take one state. Screens that stand at no prefix have to wait
        for what is left over."""
        matches = [
            (len(screen.at.actions), screen, state)
            for screen in screens
            if screen.at is not None
            for state in self._of(screen.at)
            if _is_prefix(screen.at, state)
        ]
        # of equally long prefixes the nearest state: what lies beyond it can go on from there
        matches.sort(key=lambda match: (-match[0], len(match[2].actions)))
        first: dict[_Screen, State] = {}
        for _, screen, state in matches:
            if screen not in first and state not in first.values():
                first[screen] = state
        for state in first.values():
            self._remove(state)
        return first

    def take(self, at: State | None) -> State | None:
        """The nearest state that goes on from `at`, else one of its task, as another task's page has to
        be loaded, which takes several times as long as to start an episode over; else one of the task
        that was begun longest ago, so that screens part. None when nothing is left."""
        if not self._left:
            return None
        beyond = [state for state in self._of(at) if at is not None and _is_prefix(at, state)]
        if beyond:
            return self._remove(min(beyond, key=lambda state: len(state.actions)))
        task = at.task if at is not None and at.task in self._left else next(iter(self._left))
        self._left[task] = self._left.pop(task)
        # an episode's longest way, from the first state on it that is wanted: the others follow
        episode = next(iter(self._left[task].values()))
        on_the_way = [state for state in episode if _is_prefix(state, episode[0])]
        return self._remove(on_the_way[-1])

    def _of(self, at: State | None) -> Sequence[State]:
        """The states of the same episode."""
        return () if at is None else self._left.get(at.task, {}).get(at.seed, ())

    def _remove(self, state: State) -> State:
        left = self._left[state.task][state.seed]
        left.remove(state)
        if not left:
            del self._left[state.task][state.seed]
        if not self._left[state.task]:
            del self._left[state.task]
        return state


def _is_prefix(at: State, state: State) -> bool:
    same = at.task == state.task and at.seed == state.seed
    return same and state.actions[: len(at.actions)] == at.actions


def on_screen(state: State) -> State:
    """The state as the screen has it: no `terminate`, and whatever the agent said of its actions."""
    played = (replace(a, action_desc="") for a in state.actions if a.action != "terminate")
    return replace(state, actions=tuple(played))


def ended(state: State, seen: Observation | Broken) -> Observation | Broken:
    """What is seen in a state, by what the screen shows: `terminate` ends an episode by itself."""
    over = bool(state.actions) and state.actions[-1].action == "terminate"
    return replace(seen, done=True) if over and isinstance(seen, Observation) else seen
