"""MiniWoB++ in a real Chromium: small web pages with goals, many tabs of one browser at a time.

The pages are those of the `miniwob` package (only its HTML is used), opened from disk; the browser gets
no network. What would make an episode depend on anything but its seed and actions is taken away in
miniwob_page.js: the page's clock moves only with actions, animations are off, and the last screen of an
episode stays. The reward is the page's own without its discount for time.

    click, long_press   the mouse, at the coordinate
    swipe               a finger: what can scroll under the coordinate is scrolled by wheel, anything
                        else is dragged, so that both long pages and sliders can be moved; short, medium
                        and long are 1/8, 1/4 and 1/2 of the screen's side
    type                the keyboard, into what has the focus
    system_button       Enter is pressed; the page has no Back, Home and Menu, nor apps to open: those
                        change nothing and are counted as "no_effect"
    wait                the page's clock goes on; nobody waits
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import difflib
import functools
import importlib.util
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.environment import Element, Fleet, Observation

FRAME = Frame(160, 210)
# Seen to be solvable by clicks and typing from the element list alone.
TASKS = (
    "click-test",
    "click-test-2",
    "click-button",
    "click-link",
    "click-dialog",
    "click-dialog-2",
    "click-tab",
    "click-widget",
    "click-color",
    "focus-text",
    "focus-text-2",
    "click-option",
    "click-checkboxes",
    "click-button-sequence",
    "click-collapsible",
    "click-collapsible-2",
    "click-tab-2",
    "enter-text",
    "enter-text-2",
    "enter-password",
    "login-user",
    "navigate-tree",
    "search-engine",
)
# Pages that start an episode over as if they were loaded anew, whatever was played on them before; all
# others are loaded for each episode, which takes several times as long.
RESTARTABLE = frozenset(TASKS)
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_DISTANCES = {"short": 8, "medium": 4, "long": 2}  # the screen's side divided by
_WAIT_AT_MOST_S = 60.0
_SETTLE_MS = 500  # of the page's clock after an action: menus and completions open after 300
_STARTING_S, _STOPPING_S = 60.0, 5.0
_ARGUMENTS = (
    "--disable-smooth-scrolling",
    "--disable-gpu",
    "--disable-partial-raster",  # what was drawn before would show in the last bit of some pixels
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network, whatever a page asks for
)


def miniwob_fleet(tabs: int = 8, browser: str | None = None, timeout_s: float = 30.0) -> Fleet:
    """A fleet of `tabs` tabs in one Chromium. browser: path of the program, otherwise found by name.

    Raises:
        UserError: no Chromium, or the `gui` extra is not installed.
    """
    pages_folder()
    if importlib.util.find_spec("playwright") is None:
        raise UserError("MiniWoB++ is driven by playwright, which is missing: uv sync --extra gui")
    counts: Counter[str] = Counter()
    chromium = Chromium(find_chromium(browser), counts)
    # a busy machine may take a minute to start a browser
    return Fleet(chromium.open_tab, tabs, timeout_s, counts, 4 * _STARTING_S, chromium.stop)


def find_chromium(browser: str | None = None) -> str:
    """The path of a Chromium. UserError where there is none."""
    for name in PROGRAMS if browser is None else (browser,):
        if found := shutil.which(name):
            return found
    install = "apt-get install chromium-headless-shell (Debian), or the package of your system."
    if browser is not None:
        raise UserError(
            f"browser={browser!r} is no program that can be run. Install one: {install}"
        )
    raise UserError(
        f"UI-Genie's web pages are shown in Chromium, and none is on PATH ({', '.join(PROGRAMS)}). "
        f"Install it: {install}"
    )


@functools.cache
def pages_folder() -> Path:
    """Where the `miniwob` package keeps its pages. It is not imported: that needs a gym."""
    found = importlib.util.find_spec("miniwob")
    if found is None or not found.submodule_search_locations:
        raise UserError("MiniWoB++'s pages are missing: uv sync --extra gui")
    return Path(found.submodule_search_locations[0]) / "html" / "miniwob"


def task_names() -> tuple[str, ...]:
    """All pages of the package; of those in TASKS it is known that they can be solved here."""
    return tuple(sorted(page.stem for page in pages_folder().glob("*.html")))


def page_address(task: str) -> str:
    if task not in (names := task_names()):
        near = difflib.get_close_matches(task, names, 3)
        hint = f"Did you mean {', '.join(near)}?" if near else f"Such as {', '.join(TASKS[:5])}."
        raise UserError(f"There is no MiniWoB++ task {task!r}. {hint}")
    return (pages_folder() / f"{task}.html").as_uri()


@dataclass(frozen=True)
class _Running:
    driver: Any  # playwright's own process
    browser: Any
    process: int  # the browser's


class Chromium:
    """One browser process with many tabs; it is started when first needed, and again after it died or
    stopped answering ("browsers" in counts)."""

    def __init__(self, program: str, counts: Counter[str]) -> None:
        self.program, self.counts = program, counts
        self._starting: asyncio.Task[_Running] | None = None

    @property
    def process(self) -> int | None:
        """The browser's process id, None while it does not run."""
        starting = self._starting
        if starting is None or not starting.done() or not _lives(starting):
            return None
        return starting.result().process

    async def open_tab(self) -> Tab:
        """A tab of its own context: its own renderer process and storage."""
        running = await self._running()
        try:
            context = await running.browser.new_context(
                viewport={"width": FRAME.width, "height": FRAME.height}, device_scale_factor=1
            )
            context.set_default_timeout(0)  # the fleet has the limits
            await context.add_init_script(_page_script())
            page = await context.new_page()
            return Tab(self, running, page, await context.new_cdp_session(page))
        except BaseException:
            self.give_up(running)  # a browser that opens no tab is of no use to anyone
            raise

    def give_up(self, running: _Running) -> None:
        """Ends a browser that may hang; all of its tabs are lost with it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.process, signal.SIGKILL)

    async def stop(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None:
            with contextlib.suppress(Exception):
                await _stop(await starting)

    async def _running(self) -> _Running:
        starting = self._starting
        if starting is None or (starting.done() and not _lives(starting)):
            self._starting = starting = asyncio.create_task(self._start(starting))
        # shielded: a caller whose patience ends leaves the start to the others
        return await asyncio.shield(starting)

    async def _start(self, before: asyncio.Task[_Running] | None) -> _Running:
        from playwright.async_api import Error, async_playwright

        worked = before is not None and before.exception() is None
        if before is not None and worked:
            await _stop(before.result())
        driver = await async_playwright().start()
        try:
            browser = await driver.chromium.launch(
                executable_path=self.program, args=_ARGUMENTS, timeout=1000 * _STARTING_S
            )
            session = await browser.new_browser_cdp_session()
            processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
        except BaseException as error:
            await driver.stop()
            if isinstance(error, Error) and not worked:
                why = str(error).splitlines()[0]
                raise UserError(f"{self.program} does not start: {why}") from error
            raise
        self.counts["browsers"] += 1
        return _Running(driver, browser, next(p["id"] for p in processes if p["type"] == "browser"))


def _lives(starting: asyncio.Task[_Running]) -> bool:
    failed = starting.cancelled() or starting.exception() is not None
    return not failed and starting.result().browser.is_connected()


async def _stop(running: _Running) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_STOPPING_S):
            await running.browser.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.process, signal.SIGKILL)
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_STOPPING_S):
            await running.driver.stop()


@functools.cache
def _page_script() -> str:
    return Path(__file__).with_name("miniwob_page.js").read_text(encoding="utf-8")


class Tab:
    """One screen: an Environment. What a step sends is few messages, as they are most of its cost."""

    def __init__(self, chromium: Chromium, running: _Running, page: Any, session: Any) -> None:
        self._chromium, self._running = chromium, running
        self._page, self._session = page, session
        self._task: str | None = None  # whose page is loaded

    async def reset(self, task: str, seed: int, passing: bool = False) -> Observation:
        if self._task != task or task not in RESTARTABLE:
            self._task = None
            await self._page.goto(page_address(task))
            self._task = task
        await self._mouse("mouseMoved", 0, 0)
        return await self._look(
            f"__screen.begin({json.dumps(seed)}, {json.dumps(passing)})", passing
        )

    async def act(self, action: Action, passing: bool = False) -> Observation:
        wait_ms = _SETTLE_MS
        match action.action:
            case "click":
                await self._press(action, 0)
            case "long_press":
                await self._press(action, _clock_ms(action))
            case "swipe":
                await self._swipe(action)
            case "type":
                await self._page.keyboard.type(action.text or "")
            case "system_button" if action.button == "Enter":
                await self._page.keyboard.press("Enter")
            case "wait":
                wait_ms = _clock_ms(action)
            case _:
                self._chromium.counts["no_effect"] += 1
        return await self._look(f"__screen.after({wait_ms}, {json.dumps(passing)})", passing)

    async def close(self) -> None:
        try:
            await self._page.context.close()
        except BaseException:
            # it is dead already, or so stuck that nothing else would end it
            self._chromium.give_up(self._running)
            raise

    async def _press(self, action: Action, hold_ms: float) -> None:
        x, y = _point(action)
        # The mouse stays where it is afterwards, as menus close without it. Sent together, a move
        # does not wait for the next frame.
        down = (self._mouse("mouseMoved", x, y), self._mouse("mousePressed", x, y))
        up = self._mouse("mouseReleased", x, y)
        if hold_ms:
            await asyncio.gather(*down)
            await self._evaluate(f"__screen.after({hold_ms})")
            await up
        else:
            await asyncio.gather(*down, up)

    async def _swipe(self, action: Action) -> None:
        x, y = _point(action)
        sign = -1 if action.direction in ("up", "left") else 1
        sideways = action.direction in ("left", "right")
        side = FRAME.width if sideways else FRAME.height
        far = sign * (side // _DISTANCES[action.distance or "medium"])
        dx, dy = (far, 0) if sideways else (0, far)
        # the page goes where the finger goes, so it is scrolled the other way
        if await self._evaluate(f"__screen.scrolls({x}, {y}, {-dx}, {-dy})"):
            await self._mouse("mouseWheel", x, y, deltaX=-dx, deltaY=-dy)
            await self._evaluate("__screen.frames()")
            return
        moves = [self._mouse("mouseMoved", x, y), self._mouse("mousePressed", x, y)]
        for i in range(1, 6):
            moves.append(self._mouse("mouseMoved", x + dx * i // 5, y + dy * i // 5, buttons=1))
        for move in moves:  # one by one: moves sent together would be merged
            await move
        await self._mouse("mouseReleased", x + dx, y + dy)

    async def _mouse(self, kind: str, x: int, y: int, **more: int) -> None:
        pressed = kind in ("mousePressed", "mouseReleased")
        button = {"button": "left", "clickCount": 1} if pressed else {}
        if more.get("buttons"):
            button = {"button": "left"}
        event = {"type": kind, "x": x, "y": y, **button, **more}
        await self._session.send("Input.dispatchMouseEvent", event)

    async def _evaluate(self, expression: str) -> Any:
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        got = await self._session.send("Runtime.evaluate", asked)
        if "exceptionDetails" in got:
            detail = got["exceptionDetails"]
            said = detail.get("exception", {}).get("description") or detail.get("text")
            raise RuntimeError(f"in the page: {said}")
        return got["result"].get("value")

    async def _look(self, expression: str, passing: bool) -> Observation:
        """Runs the expression, which says what is on the page, and takes the picture if there is
        anyone to look at it."""
        page: Mapping[str, Any] = await self._evaluate(expression)
        picture = b""
        if page["done"] or not passing:
            shot = await self._session.send(
                "Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True}
            )
            picture = base64.b64decode(shot["data"])
        return Observation(
            goal=page["goal"],
            screenshot=picture,
            frame=FRAME,
            elements=tuple(
                Element(e["kind"], e["text"], tuple(e["box"]), e["focused"], e["checked"])
                for e in page["elements"]
            ),
            done=page["done"],
            reward=float(page["reward"]),
        )


def _clock_ms(action: Action) -> float:
    return 1000 * min(action.time or 0.0, _WAIT_AT_MOST_S)


def _point(action: Action) -> tuple[int, int]:
    if action.coordinate is None:
        raise ValueError(f"{action} has no coordinate")
    return action.coordinate
