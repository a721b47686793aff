"""The protocol with real processes that stand in for a peer, and every way in which one fails."""

import sys
import textwrap

import pytest

from selfevolve_jax.bench import peers
from selfevolve_jax.bench.measure import Failed

FAKE = """
import sys
sys.path.insert(0, {scripts!r})
from worker import Paced, serve, useful

print("a library's greeting")  # must not be taken for an answer

def loop():
    for i in range(2):
        paced.wait()
        print("step", i)
        paced.done(tokens=i)

paced = Paced(loop)

def fail():
    raise MemoryError("no room")

def die():
    print("Killed by itself", file=sys.stderr)
    raise SystemExit(3)

def sleep():
    import time
    time.sleep(60)

serve({{
    "add": lambda a, b: {{"sum": a + b}},
    "step": paced.step,
    "fail": fail,
    "die": die,
    "sleep": sleep,
    "useful": lambda rows: {{"lengths": useful(rows, 2)}},
}})
"""


@pytest.fixture
def worker(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(scripts=str(peers.SCRIPTS)))
    worker = peers.Worker([sys.executable, str(script)], tmp_path / "log", 1)
    yield worker
    worker.close()


def test_answers_and_errors_and_goes_on(worker):
    assert worker.ask("add", a=2, b=3) == {"sum": 5}
    with pytest.raises(Failed, match="MemoryError: no room"):
        worker.ask("fail")
    with pytest.raises(Failed, match="KeyError: 'unheard'"):
        worker.ask("unheard")
    rows = [[5, 2, 0, 0], [5, 6, 7, 8], [2, 2, 2, 2]]
    assert worker.ask("useful", rows=rows)["lengths"] == [2, 4, 1]
    assert "greeting" in worker.log.read_text()


def test_a_training_loop_takes_one_step_when_asked(worker):
    first, second = worker.ask("step"), worker.ask("step")
    assert (first["tokens"], second["tokens"]) == (0, 1)
    assert first["seconds"] >= 0
    with pytest.raises(Failed, match="ended by itself"):
        worker.ask("step")


def test_a_process_that_dies_is_told_with_its_last_words(worker):
    with pytest.raises(Failed, match="ended with 3: Killed by itself"):
        worker.ask("die")
    with pytest.raises(Failed, match="ended with 3"):
        worker.ask("add", a=1, b=1)


def test_an_answer_that_does_not_come_ends_the_process(worker):
    with pytest.raises(Failed, match=r"'sleep' took more than 0 s"):
        worker.ask("sleep", timeout_s=0.2)


def test_without_an_environment_or_scripts_the_reason_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path))
    peer = peers.Peer("p", "worker.py", ("a-package",))
    monkeypatch.setattr(peers.shutil, "which", lambda name: None)
    with pytest.raises(Failed, match="uv, which makes its environment, is not installed"):
        peers.start(peer, print, 1)
    monkeypatch.undo()
    monkeypatch.setattr(peers, "SCRIPTS", tmp_path)
    with pytest.raises(Failed, match="needs a checkout"):
        peers.start(peer, print, 1)


def test_a_failed_installation_is_told_in_the_installers_words(monkeypatch, tmp_path):
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        [ "$1" = venv ] && mkdir -p "$5/bin" && exit 0
        echo "no such package: a-package" >&2
        exit 1
        """)
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{uv.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # the half-made environment is not taken for a whole one
        with pytest.raises(Failed, match="uv pip install failed: no such package: a-package"):
            peers.environment(peers.Peer("p", "worker.py", ("a-package",)), print)
