"""Control groups, version 1 or 2 by what can be written here: a job's memory, processes and CPU time.

Ours are made below the group that the controller is in (version 1), or below the nearest group above it
that hands down memory and pids (version 2), so whatever limits the controller limits its jobs too.
Their names carry the controller's pid and start time: those of a controller that is gone are removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "selfevolve-"
GONE_S = 10.0  # for killed processes to leave


@dataclass(frozen=True)
class Hierarchy:
    """Where groups are made. parents: controller -> folder; version 2 has the same one for all.
    unenforced: what no folder was found for."""

    version: int
    parents: dict[str, Path]
    unenforced: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """One job's group. folders: controller -> its folder; they may be one."""

    version: int
    folders: dict[str, Path]

    def paths(self) -> list[Path]:
        return list(dict.fromkeys(self.folders.values()))

    def cpu_s(self) -> float | None:
        """CPU seconds of all its processes, the dead ones too. None where it is not counted."""
        if self.version == 2:
            path = self.folders.get("cpu")
            return _field(path / "cpu.stat", "usage_usec") / 1e6 if path else None
        path = self.folders.get("cpuacct")
        return int((path / "cpuacct.usage").read_text()) / 1e9 if path else None

    def oom_kills(self) -> int:
        path = self.folders.get("memory")
        if path is None:
            return 0
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        return _field(path / file, "oom_kill")

    def kill(self) -> bool:
        """Ends all processes in it, and waits for them to be gone: False where some are not."""
        end = time.monotonic() + GONE_S
        while True:
            pids = self.pids()
            if not pids:
                return True
            if time.monotonic() > end:
                return False
            self._kill_once(pids)
            time.sleep(0.001)

    def pids(self) -> set[int]:
        found: set[int] = set()
        for path in self.paths():
            with contextlib.suppress(OSError):
                found |= {int(line) for line in (path / "cgroup.procs").read_text().split()}
        return found

    def _kill_once(self, pids: set[int]) -> None:
        if self.version == 2 and (self.paths()[0] / "cgroup.kill").exists():
            (self.paths()[0] / "cgroup.kill").write_text("1")
            return
        if "pids" in self.folders:  # no new ones while the old ones are told
            _write_if_there(self.folders["pids"] / "pids.max", "0")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Its processes must be gone."""
        for path in self.paths():
            end = time.monotonic() + GONE_S
            while True:
                try:
                    path.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:  # the last process is not all gone yet
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.002)


def find(proc: Path = Path("/proc"), mounts: Path = Path("/proc/self/mountinfo")) -> Hierarchy:
    """What this process may use, found by making a group and removing it."""
    own = dict(_own_groups((proc / "self/cgroup").read_text()))
    unified, version1 = _mounted(mounts.read_text())
    parents: dict[str, Path] = {}
    for controller in ("memory", "pids", "cpuacct"):
        if controller in version1 and controller in own:
            parent = version1[controller] / own[controller].lstrip("/")
            if not parent.is_dir():  # what is mounted begins at our own group
                parent = version1[controller]
            if _writable(parent):
                parents[controller] = parent
    if parents:
        return Hierarchy(1, parents, _lacking(parents, "cpuacct"))
    if unified and (parent := _delegating(unified, own.get("", "/"))):
        have = (parent / "cgroup.subtree_control").read_text().split()
        parents = {name: parent for name in ("memory", "pids") if name in have} | {"cpu": parent}
        return Hierarchy(2, parents, _lacking(parents, "cpu"))
    return Hierarchy(2, {}, _lacking({}, "cpu"))


def make(where: Hierarchy, name: str, memory_bytes: int, processes: int) -> Group:
    """A group for one job. Raises OSError."""
    group = Group(where.version, {c: p / f"{owner()}-{name}" for c, p in where.parents.items()})
    try:
        for path in group.paths():
            path.mkdir()
        _limit(group, memory_bytes, processes)
    except OSError:
        group.remove()
        raise
    return group


def _limit(group: Group, memory_bytes: int, processes: int) -> None:
    if "pids" in group.folders:
        (group.folders["pids"] / "pids.max").write_text(str(processes))
    if memory := group.folders.get("memory"):
        if group.version == 2:
            (memory / "memory.max").write_text(str(memory_bytes))
            _write_if_there(memory / "memory.swap.max", "0")
            _write_if_there(memory / "memory.oom.group", "1")
        else:
            (memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            _write_if_there(memory / "memory.memsw.limit_in_bytes", str(memory_bytes))


def owner(pid: int | None = None) -> str:
    """Names a process as no later one is named: its pid and start time (clock ticks since boot)."""
    pid = os.getpid() if pid is None else pid
    return f"{PREFIX}{pid}-{_started(pid)}"


def remove_leftovers(where: Hierarchy) -> int:
    """Ends and removes the groups of controllers that are gone. How many there were."""
    found: dict[str, dict[str, Path]] = {}
    for controller, parent in where.parents.items():
        for path in parent.glob(PREFIX + "*"):
            if is_leftover(path.name):
                found.setdefault(path.name, {})[controller] = path
    for folders in found.values():
        group = Group(where.version, folders)
        if group.kill():
            group.remove()
    return len(found)


def is_leftover(name: str) -> bool:
    """Named by owner() of a process that is gone."""
    match = re.match(rf"{PREFIX}(\d+)-(\d+)-", name)
    return match is not None and match[2] != _started(int(match[1]))


def _started(pid: int) -> str:
    """ "" where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _own_groups(text: str) -> Iterator[tuple[str, str]]:
    """(controller, path) of each line of /proc/self/cgroup; version 2's controller is ""."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _mounted(text: str) -> tuple[Path | None, dict[str, Path]]:
    """Of /proc/self/mountinfo: where version 2 is, and version 1's controllers."""
    unified: Path | None = None
    version1: dict[str, Path] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        at = Path(before.split()[4])
        if kind == "cgroup2":
            unified = unified or at
        elif kind == "cgroup":
            for option in options.split(","):
                version1.setdefault(option, at)
    return unified, version1


def _delegating(mounted: Path, own: str) -> Path | None:
    """The nearest group at or above our own that hands memory and pids down and may be written."""
    at = mounted / own.lstrip("/")
    while True:
        with contextlib.suppress(OSError):
            have = (at / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(have) and _writable(at):
                return at
        if at == mounted:
            return None
        at = at.parent


def _writable(parent: Path) -> bool:
    """A group can be made there, and a process of ours can join it."""
    trial = parent / f"{owner()}-trial-{threading.get_ident()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        join = ["/bin/sh", "-c", 'echo 0 > "$1"', "sh", str(trial / "cgroup.procs")]
        return subprocess.run(join, stderr=subprocess.DEVNULL).returncode == 0
    finally:
        with contextlib.suppress(OSError):  # on a file system that is none of groups
            (trial / "cgroup.procs").unlink()
        Group(2, {"trial": trial}).remove()


def _lacking(parents: dict[str, Path], cpu: str) -> tuple[str, ...]:
    why = "no control group can be made here"
    lines = {
        "memory": f"memory: each process is held to it, not all together ({why})",
        "pids": f"processes: counted in the job's user namespace alone ({why})",
        cpu: f"CPU time: each process is held to it, not all together ({why})",
    }
    return tuple(line for controller, line in lines.items() if controller not in parents)


def _write_if_there(path: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.write_text(text)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
