"""The container back end, against a stand-in for the engine's program (engine_stand_in.py): no engine
was at hand. What is shown is the arguments, the streams, the shell inside and the suspicion."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selfevolve_jax.dgm.sandbox import cgroups, container
from selfevolve_jax.dgm.sandbox.container import arguments, open_container, packed, unpacked
from selfevolve_jax.dgm.sandbox.job import Job, Limits, SandboxError
from selfevolve_jax.errors import UserError


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    """The stand-in's folder, with it on PATH as docker."""
    programs = tmp_path / "bin"
    programs.mkdir()
    shutil.copy(Path(__file__).parent / "engine_stand_in.py", programs / "docker")
    os.chmod(programs / "docker", 0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_ENGINE", str(tmp_path))
    return tmp_path


def calls(state: Path) -> list[list[str]]:
    return [json.loads(line) for line in (state / "log").read_text().splitlines()]


def test_the_command_line():
    limits = Limits(memory_mib=300, processes=20, cpu_s=2.5, work_mib=10, work_files=50, file_mib=3)
    job = Job(("prog", "x y"), env={"A": "b=c"}, mounts={"/data": "/usr"}, limits=limits)
    argv = arguments("docker", "image", "name", job, "mark")
    text = " ".join(argv[: argv.index("image")])
    for wanted in (
        "run --interactive --name name",
        "--network none",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--read-only",
        "--user 65534:65534",
        "--pids-limit 24",
        "--memory 300m --memory-swap 300m",
        "--ulimit core=0",
        "--ulimit fsize=3145728",
        "--ulimit cpu=3:4",
        "--tmpfs /work:rw,exec,nosuid,nodev,mode=1777,size=10m,nr_inodes=50",
        "--mount type=bind,source=/usr,target=/data,readonly",
        "--env HOME=/work --env LANG=C.UTF-8 --env A=b=c",
        "--entrypoint /bin/sh",
    ):
        assert wanted in text
    assert "--privileged" not in argv and "--rm" not in argv
    assert argv[-5:] == [container.INSIDE, "sh", "mark", "prog", "x y"]


@pytest.mark.parametrize(
    "job",
    [
        Job(("true",), mounts={"/data": "/usr,readonly=false"}),
        Job(("true",), mounts={"/a,source=/": "/usr"}),
        Job(("true",), env={"A=B": "x"}),
    ],
)
def test_no_argument_can_smuggle_another(job):
    with pytest.raises(ValueError):
        arguments("docker", "image", "name", job, "mark")


def evil_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", link: str = ""):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(content)
            tar.addfile(member, io.BytesIO(content))

        add("work", tarfile.DIRTYPE)
        add("work/good", content=b"good")
        add("../../etc/passwd", content=b"x")
        add("/etc/passwd", content=b"x")
        add("work/../../x", content=b"x")
        add("work/link", tarfile.SYMTYPE, link="/etc/passwd")
        add("work/link/below", content=b"x")
        add("work/first", content=b"twice")
        add("work/second", tarfile.LNKTYPE, link="work/first")
        add("work/hard", tarfile.LNKTYPE, link="/etc/shadow")
        add("work/fifo", tarfile.FIFOTYPE)
        add("work/device", tarfile.CHRTYPE)
        add("work/big", content=bytes(2000))
        add("work/esc\x1b[2J", content=b"e")
        add("work/not wanted", content=b"x")
    return stream.getvalue()


def test_a_hostile_tar():
    wanted = ("good", "link", "first", "second", "hard", "fifo", "device", "big", "esc\x1b[2J")
    job = Job(("true",), collect=wanted, limits=Limits(collected_bytes=1000))
    files, refused = unpacked(evil_tar(), job)
    assert files == {"good": b"good", "link/below": b"x"}
    why = dict(refused)
    assert set(why) == {
        *("../../etc/passwd", "/etc/passwd", "work/../../x"),
        *("link", "first", "second", "hard", "fifo", "device", "big", r"esc\x1b[2J"),
    }
    assert why["big"].startswith("2000 bytes")
    assert "hard link" in why["first"] and "hard link" in why["second"]


def test_broken_and_endless_tars():
    job = Job(("true",), collect=(".",), limits=Limits(collected_files=3))
    whole = evil_tar()
    for cut in range(0, len(whole), 700):
        unpacked(whole[:cut], job)
    for at in range(0, 4096, 13):
        unpacked(whole[:at] + b"\xff" * 9 + whole[at + 9 :], job)
    files, refused = unpacked(b"no tar" * 1000, job)
    assert files == {} and refused[0][0] == "…"
    for size in (
        1 << 60,
        1 << 30,
        -512,
    ):  # tarfile skips the first block by block, the last for ever
        member = tarfile.TarInfo("work/huge")
        member.size = size
        assert unpacked(member.tobuf(tarfile.GNU_FORMAT) + whole, job)[0] == {}


LONG = [
    "x" * 90,
    "d" * 80 + "/" + "f" * 80,
    "/".join(["long"] * 60),
    "\N{SNOWMAN}" * 70,
    "sp ace",
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_form(form):
    stream = io.BytesIO()
    names = [n for n in LONG if form != tarfile.USTAR_FORMAT or (len(n) < 170 and n.isascii())]
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name in names:
            member = tarfile.TarInfo(f"work/{name}")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    files, refused = unpacked(stream.getvalue(), Job(("true",), collect=(".",)))
    assert files == dict.fromkeys(sorted(names), b"abc") and refused == ()


def test_files_go_in_as_they_are():
    content = {"a/b": bytes(range(256)), "\N{SNOWMAN}" * 60: b"long", "empty": b""}
    with tarfile.open(
        fileobj=io.BytesIO(packed(Job(("true",), files=content, stdin=b"in")))
    ) as tar:
        found = {m.name: (f := tar.extractfile(m)) and f.read() for m in tar}
    assert found == {"io/stdin": b"in", **{f"work/{path}": text for path, text in content.items()}}


@pytest.mark.parametrize(
    ("made", "says"),
    [("down", "no engine answers.*Cannot connect"), ("no image", "run: docker pull")],
)
def test_refusals(state, made, says):
    (state / made).touch()
    with pytest.raises(UserError, match=says):
        open_container("docker")


def test_no_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no podman here; run: apt-get install podman"):
        open_container("podman")


def test_containers_of_a_dead_controller_are_removed(state):
    dead, ours = "selfevolve-1-7-0", f"{cgroups.owner()}-0"
    (state / "ps").write_text(f"{dead}\n{ours}\nsomebody-elses\n")
    open_container("docker")
    assert [c[-1] for c in calls(state) if c[0] == "rm"] == [dead]


@pytest.mark.sandbox
class TestInside:
    """The shell inside, in bubblewrap."""

    def test_a_job(self, state):
        job = Job(
            (
                "sh",
                "-c",
                "cat; cat a/b; echo no >&2; echo out > c; ln -s c d; echo $A $HOME; exit 7",
            ),
            files={"a/b": b"file "},
            env={"A": "b"},
            stdin=b"stdin ",
            collect=("c", "d"),
        )
        outcome = open_container("docker").run(job)
        assert (outcome.exit_code, outcome.ended) == (7, "")
        assert (outcome.stdout, outcome.stderr) == (b"stdin file b /work\n", b"no\n")
        assert outcome.files == {"c": b"out\n"}
        assert outcome.refused == (("d", "a symbolic link"),)
        assert [c[0] for c in calls(state)][-3:] == ["run", "inspect", "rm"]

    def test_wall_time_and_what_it_leaves(self, state):
        code = "echo begun; echo x > f; trap '' TERM; (setsid sleep 90 &) ; sleep 90"
        job = Job(("sh", "-c", code), collect=("f",), limits=Limits(wall_s=1.0))
        outcome = open_container("docker").run(job)
        assert (outcome.exit_code, outcome.ended) == (None, "wall time")
        assert (outcome.stdout, outcome.files) == (b"begun\n", {"f": b"x\n"})

    def test_signals_cpu_time_and_caps(self, state):
        box = open_container("docker")
        assert box.run(Job(("sh", "-c", "kill -11 $$"))).exit_code == -11
        spin = "import time\nwhile time.process_time() < 1.1: pass"
        outcome = box.run(Job(("python3", "-c", spin), limits=Limits(cpu_s=1.0)))
        assert (outcome.exit_code, outcome.ended) == (None, "CPU time")
        loud = Job(("python3", "-c", "print('x' * 10**6)"), limits=Limits(output_bytes=100))
        outcome = box.run(loud)
        assert (outcome.stdout, outcome.truncated, outcome.exit_code) == (b"x" * 100, True, 0)

    def test_memory(self, state):
        (state / "oom").touch()
        assert open_container("docker").run(Job(("true",))).ended == "memory"

    def test_a_failing_engine(self, state):
        (state / "run fails").touch()
        with pytest.raises(SandboxError, match="no space"):
            open_container("docker").run(Job(("true",)))

    def test_a_daemon_does_not_outlive_its_job(self, state):
        job = Job(("sh", "-c", "(setsid sleep 90 &); echo done"), limits=Limits(wall_s=30))
        outcome = open_container("docker").run(job)
        assert (outcome.stdout, outcome.ended, outcome.exit_code) == (b"done\n", "", 0)
        assert outcome.wall_s < 29

    def test_the_socket(self, state):
        path = str(state / "model.sock")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            threading.Thread(target=lambda: server.accept()[0].send(b"pong"), daemon=True).start()
            code = "import socket as s; c = s.socket(s.AF_UNIX); c.connect('/run/model.sock'); "
            job = Job(("python3", "-c", code + "print(c.recv(9))"), socket=path)
            assert open_container("docker").run(job).stdout == b"b'pong'\n"

    def test_workers_and_close(self, state):
        box = open_container("docker", workers=2)
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(box.run, Job(("sleep", "60"))) for _ in range(3)]
            time.sleep(1.5)
            assert len([c for c in calls(state) if c[0] == "run"]) == 2
            box.close()
            for each in waiting:
                with pytest.raises(SandboxError):
                    each.result(30)
