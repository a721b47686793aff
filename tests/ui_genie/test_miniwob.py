import http.server
import io
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import fan_out, miniwob
from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import Broken, Observation, State

FRAME = miniwob.FRAME


def _why_no_browser() -> str:
    try:
        miniwob.find_chromium()
        miniwob.pages_folder()
    except UserError as error:
        return str(error)
    return ""


browser = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(_why_no_browser()), reason=_why_no_browser() or "there is one"),
]


def in_browser(test):
    for mark in browser:
        test = mark(test)
    return test


def click(element_or_x, y=None):
    if y is None:
        left, top, right, bottom = element_or_x.box
        element_or_x, y = (left + right) // 2, (top + bottom) // 2
    return Action("click", "", coordinate=(element_or_x, y))


def swipe(x, y, direction, distance):
    return Action("swipe", "", coordinate=(x, y), direction=direction, distance=distance)


def typed(text):
    return Action("type", "", text=text)


ENTER = Action("system_button", "", button="Enter")


def one(fleet, *state) -> Observation:
    [seen] = fleet.observe([State(*state)])
    assert isinstance(seen, Observation), seen
    return seen


def named(seen, text, kind=None):
    found = [e for e in seen.elements if e.text == text and kind in (None, e.kind)]
    assert len(found) == 1, (text, seen.elements)
    return found[0]


def pixels(seen):
    return np.asarray(Image.open(io.BytesIO(seen.screenshot)).convert("RGB"))


# ---- without a browser


def test_without_a_chromium_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install chromium-headless-shell"):
        miniwob.find_chromium()
    with pytest.raises(UserError, match=r"browser='/nowhere/chromium'.*apt-get install"):
        miniwob.find_chromium("/nowhere/chromium")
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert miniwob.find_chromium() == miniwob.find_chromium(str(program)) == str(program)


def test_without_the_extra_the_message_names_it(monkeypatch):
    find_spec = miniwob.importlib.util.find_spec
    for absent in ("playwright", "miniwob"):
        miniwob.pages_folder.cache_clear()
        monkeypatch.setattr(
            miniwob.importlib.util,
            "find_spec",
            lambda n, a=absent: None if n == a else find_spec(n),
        )
        with pytest.raises(UserError, match="uv sync --extra gui"):
            miniwob.miniwob_fleet(browser=sys.executable)
    miniwob.pages_folder.cache_clear()


def test_the_tasks_are_pages_and_an_unknown_one_is_told_with_the_nearest():
    assert set(miniwob.TASKS) <= set(miniwob.task_names()) and len(set(miniwob.TASKS)) >= 14
    assert len(miniwob.task_names()) == 130
    with pytest.raises(UserError, match=r"'click-buton'.*click-button"):
        miniwob.page_address("click-buton")


def test_the_page_script_is_beside_the_module():
    assert (Path(miniwob.__file__).parent / "miniwob_page.js").is_file()


# ---- MiniWoB++'s own pages


@pytest.fixture(scope="module")
def fleet():
    with miniwob.miniwob_fleet(tabs=3, timeout_s=60) as fleet:
        yield fleet


@in_browser
def test_the_right_button_wins_the_wrong_one_loses_and_the_last_screen_stays(fleet):
    first = one(fleet, "click-test-2", 5)
    assert first.goal == "Click button ONE." and not first.done and first.reward == 0
    assert pixels(first).shape == (FRAME.height, FRAME.width, 3)
    for text, reward in (("ONE", 1.0), ("TWO", -1.0)):
        last = one(fleet, "click-test-2", 5, (click(named(first, text)),))
        assert last.done and last.reward == reward
        assert [e.text for e in last.elements] == ["ONE", "TWO"]  # not covered
        assert (pixels(last) != pixels(first)).mean() < 0.1  # a pressed button, no more


@in_browser
def test_a_task_of_several_steps(fleet):
    actions, task, seed = (), "login-user", 3
    seen = one(fleet, task, seed)
    name, password = seen.goal.split('"')[1::2]
    for label, text in (("Username", name), ("Password", password)):
        i = next(i for i, e in enumerate(seen.elements) if e.text == label)
        actions += (click(seen.elements[i + 1]),)
        seen = one(fleet, task, seed, actions)
        assert seen.elements[i + 1].focused and seen.elements[i + 1].kind == "input"
        actions += (typed(text),)
        seen = one(fleet, task, seed, actions)
    assert [e.text for e in seen.elements if e.kind == "input"] == [name, "*" * len(password)]
    assert not seen.done
    seen = one(fleet, task, seed, (*actions, click(named(seen, "Login"))))
    assert seen.done and seen.reward == 1


@in_browser
def test_seeds_differ_and_checkboxes_say_what_they_are(fleet):
    starts = fleet.observe([State("click-checkboxes", seed) for seed in range(6)])
    assert len({seen.goal for seen in starts}) == 6
    seen = starts[0]
    boxes = [e for e in seen.elements if e.kind == "checkbox"]
    assert boxes and all(e.checked is False and e.text for e in boxes)
    seen = one(fleet, "click-checkboxes", 0, (click(boxes[0]),))
    assert [e.checked for e in seen.elements if e.kind == "checkbox"] == [
        e == boxes[0] for e in boxes
    ]


def _episode(task, seed, fleet, steps):
    """Random actions on what is listed, from the seed alone."""
    rng = np.random.default_rng([seed, len(task)])
    state = State(task, seed)
    for _ in range(steps):
        seen = one(fleet, task, seed, state.actions)
        if seen.done or not seen.elements:
            break
        chosen = seen.elements[rng.integers(len(seen.elements))]
        other = (typed("Zoe"), swipe(80, 120, "up", "short"), ENTER)
        action = click(chosen) if rng.random() < 0.75 else other[rng.integers(3)]
        state = state.after(action)
    return state


@in_browser
@pytest.mark.parametrize(
    "several", [pytest.param(4, id="some"), pytest.param(99, marks=pytest.mark.slow, id="all")]
)
def test_equal_states_give_equal_observations_whatever_was_played_before(fleet, several):
    """Pixel for pixel: on pages loaded for it (RESTARTABLE empty), and on pages that have played other
    episodes of the task."""
    rng = np.random.default_rng(several)
    tasks = [str(t) for t in rng.permutation(miniwob.TASKS)[:several]]
    seeds = range(2 if several < 99 else 10)
    states = [_episode(task, seed, fleet, 3) for task in tasks for seed in seeds]
    states += [State(s.task, s.seed, s.actions[:-1]) for s in states if s.actions]
    played_on = fleet.observe(states)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miniwob, "RESTARTABLE", frozenset())
        resets = fleet.counts["resets"]
        backwards = fleet.observe([State("click-test", 1), *states[::-1]])[:0:-1]
        assert fleet.counts["resets"] > resets
    for state, once, again in zip(states, played_on, backwards, strict=True):
        assert isinstance(once, Observation)
        assert once == again, (state, np.argwhere(pixels(once) != pixels(again))[:5])


# ---- a page of our own, with all that makes trouble


@pytest.fixture
def ours(monkeypatch, tmp_path):
    """.task is tests/ui_genie/page.html; .asked is what reached a server that the page calls."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    core = (miniwob.pages_folder().parent / "core").as_uri()
    html = Path(__file__).with_name("page.html").read_text()
    page = tmp_path / "page.html"
    page.write_text(html.replace("CORE", core).replace("PORT", str(server.server_port)))
    monkeypatch.setattr(miniwob, "page_address", lambda task: page.as_uri())
    # a name of its own: the screens of the module's fleet may still show another test's page
    yield SimpleNamespace(task=f"page {server.server_port}", asked=asked)
    server.shutdown()
    server.server_close()


def log(seen):
    return next(e.text for e in seen.elements if e.box[:2] == (80, 175))


@in_browser
def test_what_is_listed_can_be_hit(fleet, ours):
    seen = one(fleet, ours.task, 0)
    texts = [e.text for e in seen.elements]
    assert not {"Under", "Outside", "Gone"} & set(texts)
    left, _, right, _ = named(seen, "Half").box
    assert left == 10 and 32 <= right <= 40  # half of it is covered
    assert [e.text for e in seen.elements if e.kind == "circle"] == ["red"]
    assert [e.text for e in seen.elements if e.kind == "triangle"] == ["blue"]
    assert named(seen, "Agree").checked is False
    assert named(seen, "Elsewhere").kind == "link"
    assert all(
        0 <= l < r <= 160 and 0 <= t < b <= 210 for l, t, r, b in (e.box for e in seen.elements)
    )
    assert log(one(fleet, ours.task, 0, (click(named(seen, "red")),))) == "round"
    assert named(one(fleet, ours.task, 0, (click(named(seen, "Agree")),)), "Agree").checked is True


@in_browser
def test_time_moves_with_actions_alone(fleet, ours):
    half = (click(named(one(fleet, ours.task, 0), "Half")),)
    start = time.monotonic()
    assert log(one(fleet, ours.task, 0, half)) == "-"
    waited = (*half, Action("wait", "", time=4.0), Action("wait", "", time=1.0))
    assert log(one(fleet, ours.task, 0, waited[:2])) == "-"
    assert log(one(fleet, ours.task, 0, waited)) == "late 12:00:06"  # 1 s to load, then 5
    assert one(fleet, ours.task, 0, (*half, Action("wait", "", time=1e9))).done is False
    assert time.monotonic() - start < 60


@in_browser
def test_typing_and_enter(fleet, ours):
    field = next(e for e in one(fleet, ours.task, 0).elements if e.kind == "input")
    nowhere = one(fleet, ours.task, 0, (typed("lost"),))
    assert next(e for e in nowhere.elements if e.kind == "input").text == ""
    actions = (click(field), typed("Zoë"), typed(" 7"))
    assert named(one(fleet, ours.task, 0, actions), "Zoë 7").focused
    last = one(fleet, ours.task, 0, (*actions, ENTER))
    assert last.done and last.reward == 0.5  # raw: no discount for time


@in_browser
def test_a_swipe_scrolls_what_can_scroll_and_drags_the_rest(fleet, ours):
    seen = one(fleet, ours.task, 0)
    scroller = named(seen, "Long").box
    x, y = scroller[0] + 20, scroller[1] + 20
    assert log(one(fleet, ours.task, 0, (swipe(x, y, "up", "medium"),))) == "scrolled 52"
    there = (swipe(x, y, "up", "long"), swipe(x, y, "down", "short"))
    assert log(one(fleet, ours.task, 0, there)) == "scrolled 79"
    thumb = next(e for e in seen.elements if e.kind == "slider").box
    drag = swipe(thumb[0] + 6, (thumb[1] + thumb[3]) // 2, "right", "medium")
    said, value = log(one(fleet, ours.task, 0, (drag,))).split()
    assert said == "range" and 30 <= int(value) <= 60


@in_browser
def test_a_long_press_holds(fleet, ours):
    hold = named(one(fleet, ours.task, 0), "Hold")
    middle = click(hold).coordinate
    short = one(fleet, ours.task, 0, (Action("long_press", "", coordinate=middle, time=0.5),))
    assert log(short) == "held 500" and not short.done
    assert one(fleet, ours.task, 0, (Action("long_press", "", coordinate=middle, time=1.0),)).done


@in_browser
def test_dialogs_links_and_the_network_lead_nowhere(fleet, ours):
    seen = one(fleet, ours.task, 0)
    actions = (
        click(named(seen, "Say")),
        click(named(seen, "Elsewhere")),
        Action("wait", "", time=1),
    )
    last = one(fleet, ours.task, 0, actions)
    assert log(last) == "no network" and ours.asked == []
    assert [e.box for e in last.elements][:-1] == [e.box for e in seen.elements][:-1]


@in_browser
def test_what_the_page_has_not_changes_nothing_and_is_counted(fleet, ours):
    before, counted = one(fleet, ours.task, 0), fleet.counts["no_effect"]
    idle = (Action("open", "", text="Mail"), Action("system_button", "", button="Back"))
    after = one(fleet, ours.task, 0, idle)
    assert fleet.counts["no_effect"] == counted + 2
    assert after == before


# ---- faults


@in_browser
def test_a_page_that_hangs_is_given_up_alone(ours):
    with miniwob.miniwob_fleet(tabs=2, timeout_s=60) as fleet:
        start = one(fleet, ours.task, 0)
        good = [State(ours.task, seed) for seed in range(4)]
        expected = fleet.observe(good)
        fleet._timeout_s = 3.0
        hung = State(ours.task, 0, (click(named(start, "Hang")),))
        [broken, *others] = fleet.observe([hung, *good])
        assert isinstance(broken, Broken) and "no answer within 3 s" in broken.reason
        assert others == expected
        assert fleet.counts["broken"] == 1 and fleet.counts["timeouts"] >= 3


@in_browser
@pytest.mark.parametrize(
    "blow", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_browser_killed_or_frozen_in_mid_call_is_replaced_and_nothing_is_lost(blow):
    states = [State("click-checkboxes", seed, (click(10, 64),)) for seed in range(40)]
    with miniwob.miniwob_fleet(tabs=2, timeout_s=60) as fleet:
        expected = fleet.observe(states)
        chromium = fleet._open.__self__
        process, counted = chromium.process, fleet.counts["resets"]
        fleet._timeout_s = 8.0

        def strike():
            while fleet.counts["resets"] < counted + 5:
                time.sleep(0.005)
            os.kill(process, blow)

        thread = threading.Thread(target=strike)
        thread.start()
        again = fleet.observe(states[::-1])[::-1]
        thread.join()
        assert again == expected
        assert fleet.counts["browsers"] == 2 and chromium.process not in (None, process)
        assert fleet.counts["crashes"] + fleet.counts["timeouts"] >= 1
        assert fleet.counts["broken"] == 0
    assert chromium.process is None
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@in_browser
def test_a_program_that_is_no_browser_is_told(tmp_path):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho no such library >&2; exit 3\n")
    program.chmod(0o755)
    with (
        miniwob.miniwob_fleet(tabs=2, browser=str(program)) as fleet,
        pytest.raises(UserError, match=f"{program} does not start"),
    ):
        fleet.observe([State("click-test", 0)])


@in_browser
@pytest.mark.multiprocess
def test_two_processes_with_a_browser_each_show_what_one_shows(fleet):
    states = [State("click-test-2", seed) for seed in range(6)]
    with fan_out.over_processes(partial(miniwob.miniwob_fleet, 1), 2) as fanned:
        assert fanned.observe(states) == fleet.observe(states)
        assert fanned.counts["browsers"] == 2
