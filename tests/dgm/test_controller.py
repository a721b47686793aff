"""The loop: one archive whatever the order in which jobs end, and however often the run is killed."""

import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from selfevolve_jax import run_dir
from selfevolve_jax.dgm import archive, events, trees, work
from selfevolve_jax.dgm.contract import BudgetSpent, Result, Unavailable
from selfevolve_jax.dgm.selection import SelectionConfig
from selfevolve_jax.errors import DiskError
from tests.dgm import toy


def told(folder: Path) -> dict:
    """The archive without times."""
    nodes = archive.fold(events.read(folder / events.NAME)[0])
    return {
        n.id: (
            replace(n, time=0.0, seconds=0.0, by_split={}),
            sorted((replace(e, wall_s=0.0, cpu_s=0.0) for e in n.evaluations), key=repr),
        )
        for n in nodes.values()
    }


def test_the_archive_is_the_same_for_any_number_of_workers(tmp_path):
    class Erratic(toy.Benchmark):
        def evaluate(self, *given):
            time.sleep(random.random() * 0.01)
            return super().evaluate(*given)

    one = toy.run(tmp_path / "one", replace(toy.RECIPE, workers=1))
    five = toy.run(tmp_path / "five", replace(toy.RECIPE, workers=5), tools=toy.tools(Erratic()))
    assert told(tmp_path / "one") == told(tmp_path / "five") and one == five


def test_everything_is_there_and_selection_never_saw_what_is_held_out(tmp_path):
    figures = toy.run(tmp_path)
    nodes = archive.fold(events.read(tmp_path / events.NAME)[0])
    assert sorted(nodes) == list(range(13)) and figures["agents"] == 13
    failed = [n for n in nodes.values() if n.tree is None]
    assert failed and all(n.reason == "it did not compile" for n in failed)
    assert all((tmp_path / n.files / "raw.txt").read_text() == "raw" for n in failed)
    repository = tmp_path / trees.NAME
    for node in nodes.values():
        if node.tree is None:
            assert not node.evaluations
            continue
        tree = trees.get(repository, node.tree)
        skill = int(tree["skill.txt"])
        # the second stage is for those that solve at least 40% of the first
        first = [e.solved for e in node.on("train")][:4]
        assert len(node.on("train")) == (12 if sum(first) >= 2 else 4)
        for e in node.evaluations:
            assert (tmp_path / e.files / "answer.txt").read_text() == f"{skill} on {e.task}"
    finalists = {n.id for n in nodes.values() if n.on("held_out")}
    assert finalists == {0, figures["best"]}
    # by hand: hardness of a task is drawn in [0, 10), and who has more skill solves it
    for name, agent in (("before", 0), ("after", figures["best"])):
        skill = int(trees.get(repository, nodes[agent].tree)["skill.txt"])
        hard = [toy.draws(f"held_out-{i}", "hardness").random() * 10 for i in range(6)]
        assert figures[name]["held_out"] == sum(h < skill for h in hard) / 6
    used = {e.seed for n in nodes.values() for e in n.on("train")}
    assert used.isdisjoint(e.seed for e in nodes[0].on("held_out") + nodes[0].on("transfer"))


def test_a_run_that_is_over_does_nothing_when_resumed(tmp_path):
    first = toy.run(tmp_path)
    before = told(tmp_path)
    calls = tmp_path.with_suffix(".calls")
    again = toy.run(tmp_path, tools=toy.tools(toy.Benchmark(0.0, calls)))
    assert again == first and told(tmp_path) == before and not calls.exists()


def test_more_generations_go_on_from_what_is_there(tmp_path):
    toy.run(tmp_path / "a", replace(toy.RECIPE, generations=3))
    toy.run(tmp_path / "a")
    toy.run(tmp_path / "b")
    a, b = told(tmp_path / "a"), told(tmp_path / "b")
    assert {i: a[i][0] for i in a} == {i: b[i][0] for i in b}


@pytest.mark.multiprocess
def test_killed_at_twenty_random_instants_it_ends_as_if_it_never_was(tmp_path):
    toy.run(tmp_path / "undisturbed")
    command = [sys.executable, "-m", "tests.dgm.toy", str(tmp_path / "killed")]
    log, kills, rng = tmp_path / "killed" / events.NAME, 0, random.Random(4)
    while kills < 20:
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        while process.poll() is None:  # until it has done something, or almost
            now = log.read_bytes().count(b"\n") if log.exists() else 0
            if now >= lines + rng.randint(0, 6):
                time.sleep(rng.random() * 0.03)
                process.kill()
            time.sleep(0.002)
        if process.wait() == 0:
            break
        kills += 1
    if kills == 20:
        assert subprocess.run(command, cwd=Path(__file__).parents[2]).returncode == 0
    assert kills == 20, f"it was over after {kills} kills"
    assert told(tmp_path / "killed") == told(tmp_path / "undisturbed")
    found = events.read(log)[0]
    ended = {
        (e["agent"], e["task"], e["seed"]): e["time"] for e in found if e["event"] == "evaluated"
    }
    assert len(ended) == sum(e["event"] == "evaluated" for e in found)  # none twice
    names = {b"%d" % 0: 0}
    repository = tmp_path / "killed" / trees.NAME
    for node in archive.fold(found).values():
        if node.tree:
            names[toy.agent_id(trees.get(repository, node.tree))] = node.id
    for line in (tmp_path / "killed.calls").read_text().splitlines():
        agent, task, seed, began = json.loads(line)
        assert began <= ended[(names[agent], task, seed)]  # what had ended was never begun again


def test_what_an_endpoint_fails_at_is_leased_again_and_counts_once(tmp_path):
    class Flaky(toy.Benchmark):
        def __init__(self):
            super().__init__()
            self.failed = set()

        def evaluate(self, agent, task, seed, box, models):
            key = (toy.agent_id(agent), task.id, seed)
            if key not in self.failed:
                self.failed.add(key)
                raise Unavailable("the endpoint is gone")
            return super().evaluate(agent, task, seed, box, models)

    toy.run(tmp_path / "flaky", tools=toy.tools(Flaky()))
    toy.run(tmp_path / "steady")
    assert told(tmp_path / "flaky") == told(tmp_path / "steady")
    found = events.read(tmp_path / "flaky" / events.NAME)[0]
    lost = sum(e["event"] == "unavailable" for e in found)
    assert lost == sum(e["event"] == "evaluated" for e in found) > 40


def test_an_endpoint_that_stays_away_stops_the_run_and_it_resumes(tmp_path):
    class Gone(toy.Benchmark):
        def evaluate(self, agent, task, seed, box, models):
            if task.id == "train-3":
                raise Unavailable("no answer from the endpoint")
            return super().evaluate(agent, task, seed, box, models)

    with pytest.raises(work.Stopped, match="no answer from the endpoint"):
        toy.run(tmp_path / "a", tools=toy.tools(Gone()))
    last = events.read(tmp_path / "a" / events.NAME)[0][-1]
    assert last["event"] == "stopped" and "no answer" in last["reason"]
    toy.run(tmp_path / "a")
    toy.run(tmp_path / "b")
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_spent_budget_ends_the_run_with_what_was_in_flight_recorded(tmp_path):
    class Dear(toy.Benchmark):
        def __init__(self):
            super().__init__()
            self.left, self.lock = 17, threading.Lock()

        def evaluate(self, *given) -> Result:
            with self.lock:
                self.left -= 1
                if self.left < 0:
                    raise BudgetSpent("budget.dollars=0.17 are spent")
            return super().evaluate(*given)

    with pytest.raises(work.Stopped, match=r"0\.17"):
        toy.run(tmp_path / "a", tools=toy.tools(Dear()))
    nodes = archive.fold(events.read(tmp_path / "a" / events.NAME)[0])
    assert sum(len(n.evaluations) for n in nodes.values()) == 17
    toy.run(tmp_path / "a")
    toy.run(tmp_path / "b")
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_stop_leaves_nothing_half_done(tmp_path):
    turns = iter(range(12))
    with pytest.raises(work.Stopped, match="enough"):
        toy.run(tmp_path / "a", stop=lambda: "" if next(turns, None) is not None else "enough")
    toy.run(tmp_path / "a")
    toy.run(tmp_path / "b")
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, monkeypatch):
    append, left = events.Log.append, iter(range(30))

    def full(log, event, **fields):
        if next(left, None) is None:
            raise DiskError("cannot write: No space left on device")
        return append(log, event, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(events.Log, "append", full)
        with pytest.raises(DiskError):
            toy.run(tmp_path / "a")
    toy.run(tmp_path / "a")
    toy.run(tmp_path / "b")
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_texts_are_on_disk_before_the_event_that_names_them(tmp_path, monkeypatch):
    """Also where the disk is full as a job's thread writes them: the run stops, and goes on later."""
    append, write = events.Log.append, run_dir.write_files_atomic
    threads, left = set(), iter(range(9))

    def checked(log, event, **fields):
        if event == "evaluated":
            assert (tmp_path / "a" / fields["files"] / "answer.txt").read_text()
        return append(log, event, **fields)

    def full(folder, files):
        threads.add(threading.current_thread())
        if "evaluations" in str(folder) and next(left, None) is None:
            raise DiskError("cannot write: No space left on device")
        write(folder, files)

    monkeypatch.setattr(events.Log, "append", checked)
    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "write_files_atomic", full)
        with pytest.raises(DiskError):
            toy.run(tmp_path / "a")
    assert len(threads - {threading.main_thread()}) > 0
    toy.run(tmp_path / "a")
    monkeypatch.undo()
    toy.run(tmp_path / "b")
    assert told(tmp_path / "a") == told(tmp_path / "b")


@pytest.mark.parametrize("arm", ["random_parents", "no_open_endedness", "no_self_improvement"])
def test_the_baselines_do_what_they_are_named_for(tmp_path, arm):
    toy.run(tmp_path, arm=arm)
    nodes = archive.fold(events.read(tmp_path / events.NAME)[0])
    made = [n for n in nodes.values() if n.id and n.tree]
    if arm == "no_open_endedness":  # always the newest agent of the generations before
        for node in made:
            older = [n for n in nodes.values() if n.generation < node.generation and n.tree]
            assert node.parent == max(
                n.id for n in older if not all(e.empty for e in n.on("train"))
            )
    if arm == "no_self_improvement":  # the first agent, of skill 3, made all
        skills = {int(trees.get(tmp_path / trees.NAME, n.tree)["skill.txt"]) for n in made}
        assert skills <= {2, 4, 5}
    assert len(made) > 5


def test_hgm_spends_its_budget_and_grows_by_its_rule(tmp_path):
    recipe = replace(
        toy.RECIPE, evaluations=60, workers=1, generations=50, selection=SelectionConfig(way="hgm")
    )
    figures = toy.run(tmp_path / "a", recipe)
    nodes = archive.fold(events.read(tmp_path / "a" / events.NAME)[0])
    attempts = sum(len(n.on("train")) for n in nodes.values())
    agents = sum(n.tree is not None for n in nodes.values())
    assert attempts == 60
    assert 60**0.6 - 2 <= agents <= 60**0.6 + 1  # 11.7: it expands where N^0.6 ≥ agents
    assert figures["best"] in nodes
    # with one worker it is a function of the archive, and so survives a stop
    turns = iter(range(25))
    with pytest.raises(work.Stopped):
        toy.run(
            tmp_path / "b", recipe, stop=lambda: "" if next(turns, None) is not None else "enough"
        )
    toy.run(tmp_path / "b", recipe)
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_a_bug_in_a_job_is_not_taken_for_a_result(tmp_path):
    class Broken(toy.Benchmark):
        def evaluate(self, *given):
            raise KeyError("a bug of ours")

    with pytest.raises(KeyError):
        toy.run(tmp_path, tools=toy.tools(Broken()))
    found = events.read(tmp_path / events.NAME)[0]
    assert not [e for e in found if e["event"] == "evaluated"]
