"""What can go wrong in the middle of a round: the browser dies, a page never loads, the disk is full.
The round ends, or the run goes on later, with nothing lost."""

import errno
import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from selfevolve_jax.errors import DiskError
from selfevolve_jax.ui_genie import miniwob, run
from selfevolve_jax.ui_genie.recipe import MiniWoBConfig
from tests.ui_genie import pages
from tests.ui_genie.test_miniwob import in_browser
from tests.ui_genie.test_rounds import RECIPE, bytes_of, ran

pytestmark = pytest.mark.usefixtures("home")
ONE_ROUND = replace(RECIPE, arms=("co_evolution",), rounds=1, screens=MiniWoBConfig(tabs=2))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    ran(folder, pages.Pages(), ONE_ROUND)
    return bytes_of(folder)


@pytest.mark.parametrize("written", [3, 14, 30])
def test_a_disk_that_fills_up_ends_the_run_and_it_goes_on_later(
    undisturbed, tmp_path, monkeypatch, written
):
    folder, left, sync = tmp_path / "run", [written], os.fsync

    def full(file):
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskError, match="No space left on device"):
            ran(folder, pages.Pages(), ONE_ROUND)
    ran(folder, pages.Pages(), ONE_ROUND, resume=True)
    assert bytes_of(folder) == undisturbed


def in_chromium(folder, monkeypatch, timeout_s=30.0, watch=lambda fleet: None):
    """The run in a real browser. watch: is given the fleet."""

    def fleet(tabs, browser):
        made = miniwob.miniwob_fleet(tabs, browser, timeout_s)
        watch(made)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(run, "miniwob_fleet", fleet)
        return run.run(ONE_ROUND, folder)


def explores(folder):
    return (folder / "round-0" / "evaluation.json").exists()


@in_browser
def test_a_browser_killed_in_mid_round_changes_nothing(tmp_path, monkeypatch):
    in_chromium(tmp_path / "one", monkeypatch)
    folder, seen = tmp_path / "other", []

    def strike(fleet):
        while not explores(folder):
            time.sleep(0.01)
        steps = fleet.counts["steps"]
        while fleet.counts["steps"] == steps:
            time.sleep(0.001)
        os.kill(fleet._open.__self__.process, signal.SIGKILL)

    def watch(fleet):
        seen.append(fleet)
        threading.Thread(target=strike, args=(fleet,), daemon=True).start()

    in_chromium(folder, monkeypatch, watch=watch)
    assert seen[0].counts["browsers"] == 2 and seen[0].counts["broken"] == 0
    assert bytes_of(folder) == bytes_of(tmp_path / "one")


@in_browser
def test_a_page_that_never_loads_costs_its_episodes_alone(tmp_path, monkeypatch):
    folder, address = tmp_path / "run", miniwob.page_address
    silent = tmp_path / "silent.html"
    os.mkfifo(silent)  # may be opened, and never has anything to read

    def lost(task):
        return silent.as_uri() if task == pages.TASKS[0] and explores(folder) else address(task)

    monkeypatch.setattr(miniwob, "page_address", lost)
    # A page that can begin anew without loading, or was seen before, would not be asked for again.
    monkeypatch.setattr(miniwob, "RESTARTABLE", frozenset())
    monkeypatch.setattr(run, "Remembered", lambda fleet: fleet)
    seen = []
    in_chromium(folder, monkeypatch, 2.0, seen.append)
    place = folder / "arms" / "co_evolution" / "round-1"
    counts = [json.loads(path.read_text()) for path in (place / "explored").rglob("counts.jsonl")]
    assert sum(each.get("broken_starts", 0) for each in counts) == ONE_ROUND.starts
    assert seen[0].counts["broken"] >= ONE_ROUND.starts and seen[0].counts["timeouts"] > 0
    after = json.loads((place / "evaluation.json").read_text())
    before = json.loads((folder / "round-0" / "evaluation.json").read_text())
    assert set(after["by_task"]) <= set(before["by_task"]) == set(pages.TASKS)
    assert after["by_task"].get(pages.TASKS[0], 0.0) == 0.0
    assert after["failures"]["broken"] == ONE_ROUND.held_out and "broken" not in before["failures"]
