"""How a run with models ends, and goes on: a budget, STOP, SIGKILL, an endpoint that is wrong from the
start. Each run is the command as typed, in a process of its own; the model is a real HTTP server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfevolve_jax.dgm import archive, sockets
from tests.dgm.recorded_model import Asked, Recorded, understood
from tests.dgm.test_whole_path import CALLS, EASY, NEEDS, books_agree, lines, of_arm, told
from tests.openai_server import Answer, Fault, OpenAIServer

pytestmark = pytest.mark.sandbox

ROOT = Path(__file__).parents[2]
COMMAND = (
    "dgm human-eval --benchmark.train 2 --benchmark.held-out 0 --benchmark.agent-s 120 "
    "--generations 1 --children 1 --workers 2 --stages.sizes --selection.way last "
    "--sandbox bubblewrap --models.coding.model m --models.coding.attempts 2 "
    "--models.coding.backoff-s 0.01 --models.coding.price-in 1 --models.coding.price-out 4"
)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the run's process keeps its temporary files: a short path, for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="whole-") as folder:
        yield Path(folder)


def start(
    url: str, place: Path, temporary: Path, *options: Any, **environment: str
) -> subprocess.Popen[str]:
    words = [*COMMAND.split(), "--models.coding.base-url", url, "--run-dir", place, *options]
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *map(str, words)],
        cwd=ROOT,
        env={**kept, "TMPDIR": str(temporary), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What it said last, as one line, once it is over. It has as long as nothing here would wait."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, out + err
    assert "Traceback" not in out + err
    if code == 0:
        return out
    assert err.count("╭") == 1, err
    return " ".join(line.strip("│ ") for line in err.splitlines()[1:-1])


def go(*given: Any, code: int = 0, **environment: str) -> str:
    return ended(start(*given, **environment), code)


def below(pid: int) -> set[tuple[int, str]]:
    """(pid, start time) of all processes below this one."""
    found, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found[int(entry.name)], parents[int(entry.name)] = stat[19], int(stat[1])
    mine, grew = {pid}, True
    while grew:
        more = {each for each, parent in parents.items() if parent in mine} - mine
        mine, grew = mine | more, bool(more)
    return {(each, found[each]) for each in mine - {pid}}


def gone(processes: set[tuple[int, str]]) -> None:
    """Waits until none of them is there any more (a zombie is not)."""
    while True:
        left = []
        for pid, began in processes:
            try:
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if stat[19] == began and stat[0] != "Z":
                left.append(pid)
        if not left:
            return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ends") / "run"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="whole-") as folder:
        with OpenAIServer(Recorded(NEEDS)) as server:
            out = go(server.url, place, Path(folder))
        assert not os.listdir(folder)
    assert "1 from 0: 1.000" in out and len(lines(place)) == CALLS
    return place


@pytest.mark.parametrize("unit", ["dollars", "tokens"])
def test_a_budget_ends_a_run_and_a_higher_one_finishes_it(tmp_path, temporary, undisturbed, unit):
    """Half of what the whole run costs is spent on the way."""
    calls = lines(undisturbed)
    cost = {
        "dollars": [e["dollars"] for e in calls],
        "tokens": [e["tokens_in"] + e["tokens_out"] for e in calls],
    }[unit]
    half = sum(cost) / 2 if unit == "dollars" else sum(cost) // 2
    option, place, model = f"--models.budget.{unit}", tmp_path / "run", Recorded(NEEDS)
    with OpenAIServer(model) as server:
        said = go(server.url, place, temporary, option, half, code=2)
        figure = f"{half:g}" if unit == "dollars" else str(half)
        assert f"the models' budget of {figure} {unit} is spent" in said and "--resume" in said
        (stopped,) = [e for e in of_arm(place) if e["event"] == "stopped"]
        assert "is spent" in stopped["reason"] and of_arm(place)[-1] == stopped
        books_agree(place, model)
        first = len(lines(place))
        spent = sum(
            e["dollars"] if unit == "dollars" else e["tokens_in"] + e["tokens_out"]
            for e in lines(place)
        )
        assert spent >= half  # reached, and at most the calls under way passed it
        assert first < CALLS
        # the same budget again: not even the preflight is asked
        asked = model.requests()
        said = go(server.url, place, temporary, option, half, "--resume", code=2)
        assert "is spent" in said and model.requests() == asked
        with open(place / "calls.jsonl", "ab") as log:  # as if the machine had died in a line
            log.write(b'{"event": "ca')
        said = go(server.url, place, temporary, option, half * 20, "--resume")
        assert "calls.jsonl: a torn last line of 13 bytes was cut off" in said
        books_agree(place, model)
    assert told(place) == told(undisturbed)
    events = of_arm(place)
    assert [e["event"] for e in events].count("evaluated") == 4  # none twice
    assert not os.listdir(temporary)


class Held:
    """A Recorded whose answer to one request never comes: here(pid of the run) is called instead."""

    def __init__(self, asked: Asked) -> None:
        self.model, self.asked = Recorded(NEEDS), asked
        self.reached, self.over = threading.Event(), threading.Event()

    def __call__(self, number: int, body: dict[str, Any]) -> Answer:
        answer = self.model(number, body)
        if understood(body) == self.asked and not self.over.is_set():
            self.reached.set()
            self.over.wait()
            return Fault("no reply")
        return answer


@pytest.mark.parametrize(
    "asked",
    [Asked("self-modification", 0, 1), Asked("diagnosis", 0, 0), Asked(EASY, 0, 1)],
    ids=["self-modification", "diagnosis", "task"],
)
def test_the_kill_switch_ends_a_run_at_once_and_leaves_nothing(
    tmp_path, temporary, undisturbed, asked
):
    """The model's answer never comes, so nothing but the switch can end it."""
    place, held = tmp_path / "run", Held(asked)
    with OpenAIServer(held) as server:
        process = start(server.url, place, temporary)
        assert held.reached.wait(200)
        if asked.what == "diagnosis":  # a second process on the same run changes nothing
            before = (of_arm(place), lines(place))
            assert "is in use" in go(server.url, place, temporary, "--resume", code=2)
            assert before == (of_arm(place), lines(place))
        processes = below(process.pid)
        assert bool(processes) == (asked.what != "diagnosis")  # that is asked from no sandbox
        (place / "STOP").touch()
        said = ended(process, 2)
        assert f"{place}/STOPisthere" in said.replace(" ", "")  # the box breaks a long path
        gone(processes)
        assert not os.listdir(temporary)
        assert of_arm(place)[-1]["event"] == "stopped"
        assert 1 not in archive.fold(of_arm(place))
        said = go(server.url, place, temporary, "--resume", code=2)  # it is still there
        assert f"{place}/STOPisthere" in said.replace(" ", "")
        held.over.set()
        (place / "STOP").unlink()
        go(server.url, place, temporary, "--resume")
    assert told(place) == told(undisturbed)


def test_killed_amid_agents_jobs_it_ends_as_if_it_never_was(tmp_path, temporary, undisturbed):
    """SIGKILL at known instants of four lives: amid tasks, the diagnosis, the child's making and the
    child's own task."""
    instants = [
        Asked(EASY, 0, 1),
        Asked("diagnosis", 0, 0),
        Asked("self-modification", 0, 1),
        Asked("self-modification", 0, 2),
        Asked(EASY, 1, 2),
    ]
    place, model = tmp_path / "run", Recorded(NEEDS)
    process: list[subprocess.Popen[str]] = []
    below_it: list[set[tuple[int, str]]] = []
    kill_at: list[Asked] = []
    lock = threading.Lock()

    def kills(number: int, body: dict[str, Any]) -> Answer:
        answer = model(number, body)
        with lock:
            if kill_at and understood(body) == kill_at[0]:
                kill_at.clear()
                below_it.append(below(process[-1].pid))
                process[-1].kill()
        return answer

    with OpenAIServer(kills) as server:
        for life, instant in enumerate(instants):
            kill_at.append(instant)
            with lock:
                process.append(start(server.url, place, temporary, *["--resume"] * bool(life)))
            process[-1].communicate(timeout=200)
            assert process[-1].returncode == -signal.SIGKILL and not kill_at
            gone(below_it[-1])
            assert len(below_it) == life + 1
        assert [bool(processes) for processes in below_it] == [True, False, True, True, True]
        go(server.url, place, temporary, "--resume")
    assert told(place) == told(undisturbed)
    events = of_arm(place)
    assert [e["event"] for e in events].count("evaluated") == 4
    assert [e["event"] for e in events].count("child") == 2
    assert [e["event"] for e in events].count("run") == len(instants) + 1
    # what the killed lives left under their last breath is gone: sockets by the next life
    assert not [name for name in os.listdir(temporary) if name.startswith(sockets.PREFIX)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"server": "401"}, ("the coding model: m at", "HTTP 401", "OPENAI_API_KEY", "is not set")),
        ({"server": "401", "key": "sk-wrong-wrong"}, ("HTTP 401", "OPENAI_API_KEY", "is set")),
        ({"server": "404"}, ("HTTP 404", "It has: another")),
        ({"server": None}, ("start a server there",)),
        ({"server": "500"}, ("HTTP 500", "start a server there")),
    ],
    ids=["no key", "wrong key", "unknown model", "no server", "broken"],
)
def test_an_endpoint_that_is_wrong_is_said_before_anything_is_written_or_started(
    tmp_path, temporary, options, words
):
    starts: dict[str, Callable[[], OpenAIServer]] = {
        "401": lambda: OpenAIServer([], key="sk-right-right"),
        "404": lambda: OpenAIServer([], models=("another",)),
        "500": lambda: OpenAIServer([Fault("500")] * 2),
    }
    place = tmp_path / "run"
    # Where a sandbox is started none can be, so that it would be told instead.
    environment = {"PATH": "/nowhere"}
    if "key" in options:
        environment["OPENAI_API_KEY"] = options["key"]
    if options["server"] is None:
        said = go("http://127.0.0.1:9/v1", place, temporary, code=2, **environment)
    else:
        with starts[options["server"]]() as server:
            said = go(server.url, place, temporary, code=2, **environment)
            assert 1 <= len(server.seen) <= 2
    for each in words:
        assert each in said, said
    assert "sk-wrong-wrong" not in said
    assert not place.exists() and not os.listdir(temporary)


def test_a_key_that_is_taken_back_amid_the_run_stops_it_and_it_resumes(
    tmp_path, temporary, undisturbed
):
    place, model, taken = tmp_path / "run", Recorded(NEEDS), [True]

    def answers(number: int, body: dict[str, Any]) -> Answer:
        back = taken[0] and understood(body).what == "self-modification"
        return Fault("401") if back else model(number, body)

    with OpenAIServer(answers) as server:
        said = go(server.url, place, temporary, code=2)
        assert "HTTP 401" in said and "--resume" in said
        assert of_arm(place)[-1]["event"] == "stopped"
        assert "HTTP 401" in of_arm(place)[-1]["reason"]
        taken[0] = False
        go(server.url, place, temporary, "--resume")
    assert told(place) == told(undisturbed)
