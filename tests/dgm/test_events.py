"""The event log: whole lines only, synced, and an end that is torn costs nothing but itself."""

import json
import os
import threading

import pytest

from selfevolve_jax.dgm import archive, events
from selfevolve_jax.errors import DiskError, UserError

CHILD = {
    "parent": None,
    "generation": 0,
    "slot": 0,
    "tree": "a" * 40,
    "reason": "",
    "entry": "",
    "diagnosis": "",
    "flags": [],
    "usage": {"calls": 1, "tokens_in": 2, "tokens_out": 3, "dollars": 0.5},
    "seconds": 1.0,
    "files": "agents/0",
}
ATTEMPT = {
    "task": "t1",
    "seed": 1,
    "split": "train",
    "group": "g",
    "solved": True,
    "partial": 1.0,
    "empty": False,
    "reason": "",
    "tests": {"a": True},
    "usage": {"calls": 0, "tokens_in": 0, "tokens_out": 0, "dollars": 0.0},
    "cpu_s": 0.1,
    "wall_s": 0.2,
    "files": "evaluations/0/t1.1",
}


def test_a_torn_tail_is_cut_off_and_the_rest_is_there(tmp_path):
    path = tmp_path / events.NAME
    log = events.Log(path)
    log.append("run", seed=3)
    log.append("selected", generation=1, parents=[0, 0])
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "evalu')
    assert events.read(path)[1] == 16  # reading alone changes nothing
    assert path.read_bytes().endswith(b"evalu")
    log = events.Log(path)
    assert log.torn == 16 and [e["event"] for e in log.events] == ["run", "selected"]
    log.append("stopped", reason="ü")
    log.close()
    assert path.read_bytes().startswith(whole)
    assert [e["event"] for e in events.read(path)[0]] == ["run", "selected", "stopped"]
    assert events.read(path)[1] == 0


def test_every_cut_of_a_log_reads_as_a_prefix(tmp_path):
    path = tmp_path / events.NAME
    log = events.Log(path)
    for i in range(4):
        log.append("run", seed=i)
    log.close()
    whole = path.read_bytes()
    for n in range(len(whole) + 1):
        path.write_bytes(whole[:n])
        found, torn = events.read(path)
        assert [e["seed"] for e in found] == list(range(whole[:n].count(b"\n")))
        assert torn == n - (whole[:n].rfind(b"\n") + 1)


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"time": 1}', b"\xff", b""])
def test_a_damaged_line_before_the_last_is_named(tmp_path, line):
    path = tmp_path / events.NAME
    path.write_bytes(b'{"event": "run"}\n' + line + b'\n{"event": "run"}\n')
    with pytest.raises(UserError, match=r"events.jsonl line 2 is damaged"):
        events.read(path)


def test_a_write_that_the_disk_refuses_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / events.NAME
    log = events.Log(path)
    log.append("run", seed=0)
    before = path.read_bytes()
    sync = os.fsync

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        log.append("run", seed=1)
    assert path.read_bytes() == before and len(log.events) == 1
    monkeypatch.setattr(os, "fsync", sync)
    log.append("run", seed=2)
    assert [e["seed"] for e in events.read(path)[0]] == [0, 2]


def test_threads_do_not_mix_lines(tmp_path):
    log = events.Log(tmp_path / events.NAME)

    def write(name):
        for i in range(30):
            log.append("run", seed=f"{name}-{i}" * 50)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(events.read(tmp_path / events.NAME)[0]) == 120


def test_the_fold_counts_once_and_adds_up():
    child = {"event": "child", "time": 1.0, "agent": 0, **CHILD}
    attempt = {"event": "evaluated", "time": 2.0, "agent": 0, **ATTEMPT}
    made = {**child, "agent": 1, "parent": 0, "generation": 1}
    failed = {**child, "agent": 2, "parent": 0, "generation": 1, "tree": None, "reason": "no diff"}
    nodes = archive.fold([child, attempt, attempt, failed, made, made])  # 2 was made before 1
    assert list(nodes) == [0, 1, 2]
    assert nodes[0].children == 1  # the failed one has no tree, and is there all the same
    assert len(nodes[0].evaluations) == 1 and not nodes[0].on("held_out")
    assert nodes[2].reason == "no diff" and nodes[0].usage.dollars == 0.5
    with pytest.raises(UserError, match="agent 7"):
        archive.fold([child, {**attempt, "agent": 7}])


def test_seconds_leave_out_the_time_between_lives():
    # 10 → 13 → 14, killed; resumed at 100, ended at 102: 4 + 2
    times = [("run", 10), ("child", 13), ("evaluated", 14), ("run", 100), ("stopped", 102)]
    assert archive.seconds({"event": e, "time": float(t)} for e, t in times) == 6.0


def test_a_thousand_agents_fold_to_what_was_written(tmp_path):
    lines = [{"event": "child", "time": 0.0, "agent": 0, **CHILD}]
    for agent in range(1, 1000):
        lines.append({**lines[0], "agent": agent, "parent": agent // 2, "generation": agent})
    for agent in range(1000):
        lines += [
            {"event": "evaluated", "time": 0.0, "agent": agent, **ATTEMPT, "task": f"t{i}"}
            for i in range(20)
        ]
    (tmp_path / events.NAME).write_text("".join(json.dumps(e) + "\n" for e in lines))
    nodes = archive.fold(events.read(tmp_path / events.NAME)[0])
    assert len(nodes) == 1000 and all(len(n.evaluations) == 20 for n in nodes.values())
    assert sum(n.children for n in nodes.values()) == 999


def test_a_log_that_another_process_writes_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / events.NAME
    log = events.Log(path)
    log.append("run", seed=1)
    path.write_bytes(path.read_bytes() + b'{"event": "chi')  # the other one is amid a line
    before = path.read_bytes()
    with pytest.raises(UserError, match="in use"):
        events.Log(path)
    assert path.read_bytes() == before
    log.close()
    again = events.Log(path)
    assert (again.torn, len(again.events)) == (14, 1)
    again.close()
