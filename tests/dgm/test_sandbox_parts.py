"""The sandbox's parts that need no sandbox: copying in and out, control groups, uids, the filter."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.dgm.sandbox import cgroups, command, copy_out, seccomp, uids, workdir
from selfevolve_jax.dgm.sandbox.job import Job
from selfevolve_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("path", ["", "/", "/a", "a/", "a//b", ".", "./a", "..", "a/../b", "a\0b"])
def test_paths_that_are_refused(path):
    with pytest.raises(ValueError, match="not a relative path"):
        workdir.checked(path)


@pytest.mark.parametrize("path", ["a", "a/b", "..a", "a..", "...", " ", "\N{SNOWMAN}", "a\n"])
def test_paths_that_are_taken(path):
    assert workdir.checked(path) == path


def test_in_and_out_again(folder, tmp_path):
    files = {"a/b/c": b"1", "a/d": b"", "e": bytes(100)}
    workdir.copy_in(folder, files, os.getuid(), os.getgid())
    assert (tmp_path / "a/b/c").read_bytes() == b"1"
    assert copy_out.copy_out(folder, ["."], 1000, 100) == (files, ())
    assert copy_out.copy_out(folder, ["a"], 1000, 100)[0] == {"a/b/c": b"1", "a/d": b""}
    assert copy_out.copy_out(folder, ["a/d", "a", "a/d"], 1000, 100)[0] == {
        "a/b/c": b"1",
        "a/d": b"",
    }


@pytest.mark.parametrize("wanted", ["../x", "a/../../x", "/etc/passwd", "up/passwd"])
def test_what_is_wanted_outside_is_refused(folder, tmp_path, wanted):
    (tmp_path / "a").mkdir()
    (tmp_path / "up").symlink_to("/etc")
    files, refused = copy_out.copy_out(folder, [wanted], 1000, 100)
    assert files == {}
    assert [path for path, _ in refused] == [wanted]


@given(st.binary())
def test_names_are_shown_without_control_characters(name):
    assert copy_out.shown(name).isprintable() or name == b""


def test_a_folder_with_more_than_is_worth_reading(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(copy_out, "REFUSED", 5)
    for n in range(20):
        (tmp_path / f"{n:02}").symlink_to("x")
    files, refused = copy_out.copy_out(folder, ["."], 1000, 100)
    assert files == {} and len(refused) == 6 and refused[-1] == ("…", "15 more refused")


def test_bwraps_arguments_hold_what_was_asked():
    job = Job(("x", "y"), env={"A": "b c", "PATH": "/bin"})
    inside = command.inside(job, memory_grouped=True)
    assert inside[-6:] == ["PATH=/bin", "HOME=/work", "LANG=C.UTF-8", "A=b c", "x", "y"]
    assert "--data=536870912" not in inside
    assert "--data=536870912" in command.inside(job, memory_grouped=False)
    fds = {"filter": 3, "passwd": 4, "group": 5}
    words = command.arguments(job, {"/data": "/host/data"}, "/host/work", fds).split(b"\0")
    text = b" ".join(words)
    for wanted in (
        *(
            b"--unshare-user --unshare-pid --unshare-net --unshare-ipc --unshare-uts",
            b"--seccomp 3",
        ),
        *(b"--disable-userns", b"--die-with-parent", b"--new-session", b"--bind /host/work /work"),
        b"--ro-bind /host/data /data",
    ):
        assert wanted in text
    assert b"/etc/shadow" not in text and b"--ro-bind / /" not in text
    assert text.index(b"--remount-ro / ") > text.index(b"--ro-bind /host/data")


# Control groups

MOUNTS_2 = "30 20 0:26 / {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNTS_1 = "".join(
    f"3{n} 20 0:2{n} / {{at}}/{name} rw - cgroup cgroup rw,{name}\n"
    for n, name in enumerate(("memory", "pids", "cpuacct"))
)


def laid(tmp_path: Path, own: str, mounts: str) -> tuple[Path, Path]:
    """A /proc and a mountinfo that say so."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    (tmp_path / "mountinfo").write_text(mounts.format(at=tmp_path / "groups"))
    (tmp_path / "groups").mkdir(exist_ok=True)
    return tmp_path / "proc", tmp_path / "mountinfo"


def test_version_2_by_the_nearest_that_hands_down(tmp_path):
    session = tmp_path / "groups/user.slice/session"
    session.mkdir(parents=True)
    (session / "cgroup.subtree_control").write_text("")  # it has processes: nothing below
    (tmp_path / "groups/user.slice/cgroup.subtree_control").write_text("cpu memory pids")
    found = cgroups.find(*laid(tmp_path, "0::/user.slice/session\n", MOUNTS_2))
    parent = tmp_path / "groups/user.slice"
    assert found == cgroups.Hierarchy(2, dict.fromkeys(("memory", "pids", "cpu"), parent), ())
    group = cgroups.make(found, "0-0", 1 << 20, 7)
    (path,) = group.paths()
    assert path.parent == parent and path.name == f"{cgroups.owner()}-0-0"
    assert (path / "memory.max").read_text() == "1048576"
    assert (path / "pids.max").read_text() == "7"
    (path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (path / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")
    assert (group.cpu_s(), group.oom_kills()) == (1.5, 3)


def test_version_1_below_our_own_group(tmp_path):
    for name in ("memory/ours", "pids", "cpuacct"):
        (tmp_path / "groups" / name).mkdir(parents=True)
    own = "4:memory:/ours\n3:pids:/\n2:cpuacct:/\n0::/\n"
    found = cgroups.find(*laid(tmp_path, own, MOUNTS_1))
    assert found.version == 1 and found.unenforced == ()
    assert found.parents["memory"] == tmp_path / "groups/memory/ours"
    group = cgroups.make(found, "1-2", 1 << 20, 7)
    assert (group.folders["memory"] / "memory.limit_in_bytes").read_text() == "1048576"
    (group.folders["cpuacct"] / "cpuacct.usage").write_text("2500000000\n")
    (group.folders["memory"] / "memory.oom_control").write_text("under_oom 0\noom_kill 1\n")
    assert (group.cpu_s(), group.oom_kills()) == (2.5, 1)


@pytest.mark.parametrize("own", ["0::/\n", "0::/nowhere\n", ""])
def test_where_nothing_may_be_made_it_is_said(tmp_path, own):
    found = cgroups.find(*laid(tmp_path, own, MOUNTS_2))
    assert found.parents == {}
    assert [line.split(":")[0] for line in found.unenforced] == ["memory", "processes", "CPU time"]
    group = cgroups.make(found, "0-0", 1, 1)
    assert (group.paths(), group.cpu_s(), group.oom_kills(), group.kill()) == ([], None, 0, True)


@pytest.mark.sandbox
def test_version_2_kills_and_counts_for_real():
    mounted, _ = cgroups._mounted(Path("/proc/self/mountinfo").read_text())
    if mounted is None or not os.access(mounted, os.W_OK):
        pytest.skip("no version 2 to write to")
    try:
        group = cgroups.make(cgroups.Hierarchy(2, {"cpu": mounted}, ()), "test", 0, 0)
    except OSError as e:
        pytest.skip(f"no version 2 to write to: {e}")
    code = "import os; [os.fork() for _ in range(3)]\nwhile True: pass"
    join = f"echo 0 > {group.paths()[0]}/cgroup.procs; exec {sys.executable} -c '{code}'"
    with subprocess.Popen(["sh", "-c", join]) as child:
        while (group.cpu_s() or 0) < 0.3:
            pass
        assert len(group.pids()) > 1
        assert group.kill()
        child.wait(10)
    assert group.pids() == set()
    group.remove()
    assert not group.paths()[0].exists()


def test_a_process_is_named_for_good():
    assert cgroups.owner() == cgroups.owner(os.getpid())
    assert not cgroups.is_leftover(f"{cgroups.owner()}-0-1")
    assert cgroups.is_leftover(f"{cgroups.PREFIX}{os.getpid()}-7-0-1")  # its pid, another start
    assert not cgroups.is_leftover("selfevolve-no-number") and not cgroups.is_leftover(
        "system.slice"
    )


# Uids


def test_uids_by_what_the_namespace_has():
    assert uids.first("         0          0 4294967295\n") == uids.FIRST
    assert uids.first("0 1000 1\n1 100000 65536\n") == 65537 - uids.MOST
    with pytest.raises(UserError, match="too few uids"):
        uids.first("0 1000 1\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="locks of root's")
def test_no_two_slots_have_one_uid(monkeypatch, tmp_path):
    monkeypatch.setattr(uids, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(uids, "in_use", set)
    first, second = uids.take(), uids.take()
    assert len({first.uid, second.uid, uids.shared_gid()}) == 3
    taken = first.uid
    first.close()
    assert uids.take().uid == taken
    second.close()
    monkeypatch.setattr(uids, "in_use", lambda: {second.uid})  # a process of a dead controller's
    assert uids.take().uid not in (taken, second.uid)


# The filter


def test_the_filter_is_a_program_of_whole_instructions():
    pytest.importorskip("pyseccomp")
    program = seccomp.program()
    assert len(program) % 8 == 0 and 500 < len(program) < 4096 * 8
    (code, _, _, where) = struct.unpack("HBBI", program[:8])
    assert (code, where) == (0x20, 4)  # it begins by loading the architecture
