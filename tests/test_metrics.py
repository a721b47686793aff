import contextlib
import errno
import io
import math
import os
import pty
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax import metrics
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.metrics import MetricLog, Terminal, read_metrics

ROOT = Path(metrics.__file__).parents[1]


def lines_of(run):
    return (run / "metrics.jsonl").read_text().splitlines()


def write(run, steps, resume_step=None, **options):
    with contextlib.closing(MetricLog(run, resume_step=resume_step, **options)) as log:
        for step in steps:
            log.log(step, {"reward/mean": step / 10})


def steps_of(run):
    return [line["step"] for line in read_metrics(run / "metrics.jsonl")]


def test_one_valid_line_a_step_with_null_for_what_is_no_number(tmp_path):
    with contextlib.closing(MetricLog(tmp_path, resume_step=None)) as log:
        log.log(1, {"a": 0.5, "n": np.int32(7), "j": jnp.float32(0.25)})
        assert len(lines_of(tmp_path)) == 1  # at once, not at close
        log.log(np.int64(2), {"a": math.nan, "b": -math.inf, "c": None, "d": np.float32("nan")})
    first, second = lines_of(tmp_path)
    assert first == '{"step": 1, "a": 0.5, "n": 7, "j": 0.25}'
    assert second == '{"step": 2, "a": null, "b": null, "c": null, "d": null}'
    assert read_metrics(tmp_path / "metrics.jsonl")[1]["a"] is None


@pytest.mark.parametrize("value", ["NaN", [1.0], np.ones(2), True])
def test_a_metric_that_is_no_number_is_refused_before_anything_is_written(tmp_path, value):
    with contextlib.closing(MetricLog(tmp_path, resume_step=None)) as log:
        with pytest.raises(TypeError, match="metric odd"):
            log.log(1, {"odd": value})
        log.log(1, {"odd": 1})
    assert steps_of(tmp_path) == [1]


def test_steps_must_rise(tmp_path):
    write(tmp_path, [1, 2])
    with contextlib.closing(MetricLog(tmp_path, resume_step=2)) as log:
        for step in (1, 2):
            with pytest.raises(ValueError, match=f"step {step} after those of step 2"):
                log.log(step, {})
    assert steps_of(tmp_path) == [1, 2]


@given(
    last=st.integers(0, 8), kept=st.integers(0, 10), torn=st.sampled_from(["", '{"step": 9', "1"])
)
@settings(max_examples=20)
def test_killed_and_resumed_each_step_is_there_once(tmp_path_factory, last, kept, torn):
    run = tmp_path_factory.mktemp("run")
    write(run, range(1, last + 1))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(torn)
    kept = min(kept, last)
    write(run, range(kept + 1, 10), resume_step=kept)
    assert steps_of(run) == list(range(1, 10))
    assert [line["reward/mean"] for line in read_metrics(run / "metrics.jsonl")] == [
        step / 10 for step in range(1, 10)
    ]


def test_a_fresh_log_drops_older_lines_even_damaged_ones(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("rubbish\n")
    write(tmp_path, [1], resume_step=None)
    assert steps_of(tmp_path) == [1]


def test_a_run_killed_outright_keeps_every_line_it_logged(tmp_path):
    code = """
import os, signal, sys
from selfevolve_jax.metrics import MetricLog
log = MetricLog(sys.argv[1], resume_step=None)
for step in range(1, 6):
    log.log(step, {"a": step})
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


# -- reading


def test_only_a_torn_last_line_is_forgiven(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')  # no newline: torn, though it parses
    assert read_metrics(path) == [{"step": 1}]
    for damage in ("{torn\n", "3\n", '{"a": 1}\n', '{"step": 1.5}\n', "\n"):
        path.write_text('{"step": 1}\n' + damage + '{"step": 3}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is damaged"):
            read_metrics(path)
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "absent.jsonl")


# -- a disk that refuses


def test_a_full_disk_leaves_whole_lines_and_the_log_can_go_on(tmp_path, monkeypatch):
    log = MetricLog(tmp_path, resume_step=None)
    log.log(1, {"a": 1})
    real = os.write
    calls = []

    def full_after_five_bytes(descriptor, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, bytes(data[:5]))

    monkeypatch.setattr(os, "write", full_after_five_bytes)
    with pytest.raises(DiskError, match=r"metrics\.jsonl: No space left"):
        log.log(2, {"a": 2})
    assert len(calls) == 2
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": 1}\n'
    monkeypatch.setattr(os, "write", real)
    log.log(2, {"a": 2})
    log.close()
    assert steps_of(tmp_path) == [1, 2]


def test_a_full_disk_under_tensorboard_is_reported_and_does_not_hang(tmp_path, monkeypatch):
    log = MetricLog(tmp_path, resume_step=None)

    def refuse():
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(log._events, "flush", refuse)
    with pytest.raises(DiskError, match="tensorboard"):
        log.close()


# -- TensorBoard


def scalars(run):
    """(step, tag, value) of every event file, oldest first, by the record format: length, its crc,
    data, its crc."""
    from tensorboardX.proto.event_pb2 import Event

    found, starts = [], []
    for path in sorted((run / "tensorboard").iterdir(), key=os.path.getmtime):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            starts += [event.step] if event.session_log.status else []
            data = data[16 + length :]
    return found, starts


def test_tensorboard_gets_every_number_and_hides_what_a_resume_redoes(tmp_path):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [3], resume_step=2)
    found, starts = scalars(tmp_path)
    assert [(step, tag) for step, tag, _ in found] == [(s, "reward/mean") for s in (1, 2, 3, 3)]
    assert [value for *_, value in found] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert starts == [3]


# -- who writes, and trackers


def test_other_processes_write_nothing(tmp_path):
    write(tmp_path, [1, 2], enabled=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_gets_the_same_numbers_and_its_id_back(tmp_path, monkeypatch, tracker):
    told = []
    run = types.SimpleNamespace(
        log=lambda numbers, step: told.append((step, numbers)), finish=lambda: told.append("end")
    )
    fake = types.ModuleType(tracker)
    fake.init = lambda *args, **options: told.append((args, options)) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, tracker, fake)
    log = MetricLog(tmp_path, resume_step=None, tracker=tracker, config={"a": (1, 2)})
    log.log(1, {"x": 0.5})
    log.close()
    log.close()
    identity = log.tracker_id
    assert identity
    (_, options), *rest = told
    assert rest == [(1, {"x": 0.5}), "end"]
    assert options["resume"] == "allow" and options["config"] == {"a": [1, 2]}
    again = MetricLog(tmp_path, resume_step=1, tracker=tracker, tracker_id=identity)
    again.close()
    key = "id" if tracker == "wandb" else "name"
    assert options[key] == told[3][1][key] == again.tracker_id == identity


def test_a_missing_tracker_costs_nothing_that_was_there(tmp_path, monkeypatch):
    write(tmp_path, [1, 2])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="uv sync --extra wandb"):
        MetricLog(tmp_path, resume_step=None, tracker="wandb")
    assert steps_of(tmp_path) == [1, 2]
    with pytest.raises(UserError, match="'aim' is not known"):
        MetricLog(tmp_path, resume_step=None, tracker="aim")  # pyright: ignore
    assert MetricLog(tmp_path, resume_step=1, enabled=False, tracker="wandb").tracker_id


# -- the terminal


def shown(total, steps, enabled=True):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), Terminal(total, "srt", enabled) as terminal:
        for step in steps:
            extra = {"eval/mean": 0.75} if step == 7 else {}
            terminal.step(step, {"reward/mean": 0.5, "unknown": 3, "kl/ref": None, **extra})
    return out.getvalue().splitlines()


def test_off_a_tty_about_twenty_plain_lines_and_the_last(capsys):
    lines = shown(1003, range(1, 1004))
    assert len(lines) in range(15, 25)
    assert lines[0] == "srt    1/1003  reward 0.500"
    assert lines[1] == "srt   51/1003  reward 0.500  held-out mean 0.750"  # carried from step 7
    assert lines[-1].startswith("srt 1003/1003")
    assert all(line.isprintable() for line in lines)
    assert len(shown(12, range(1, 13))) == 12


def test_a_resumed_run_shows_where_it_starts():
    assert shown(1000, range(777, 1001))[0].startswith("srt  777/1000")


def test_a_silent_process_prints_nothing():
    assert shown(10, range(1, 11), enabled=False) == []


def test_three_samples_on_one_line_each_with_control_codes_made_harmless(capsys):
    with Terminal(10, "srt") as terminal:
        terminal.samples([("p\nq", "\x1b[2J[red]x[/red]", 1.0)] * 5)
        terminal.samples([("p", "y" * 5000, 0.5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "  prompt    p⏎ q",
        r"  response  \x1b[2J[red]x[/red]",
        "  reward    1",
    ]
    assert len(lines) == 12 and max(map(len, lines)) < 400


def test_a_terminal_that_cannot_show_a_character_gets_an_escape(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with Terminal(1, "Gödel") as terminal:
        terminal.message("half \ud800")
        terminal.step(1, {})
    sys.stdout.flush()
    assert raw.getvalue() == b"half \\ud800\nG\\xf6del 1/1\n"


def test_on_a_tty_every_step_has_a_line_and_markup_is_text():
    code = """
from selfevolve_jax.metrics import Terminal
with Terminal(40, "[bold]srt", True) as terminal:
    for step in range(1, 41):
        terminal.step(step, {"reward/mean": step / 40})
    terminal.message("[red]not markup[/red] :smile:")
"""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    data = b""
    with contextlib.suppress(OSError):  # the other end has closed
        while chunk := os.read(leader, 65536):
            data += chunk
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode())
    assert len(set(re.findall(r"(\d+)/40  reward", text))) == 40
    assert "[red]not markup[/red] :smile:" in text
