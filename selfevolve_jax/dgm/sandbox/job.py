"""What runs in a sandbox, within which limits, and what came of it. Every back end takes a Job and
gives an Outcome; nothing else crosses the wall.

Inside, a job's user is nobody of the host's; its files are in /work, which alone is writable besides
/tmp and /dev/shm (both small); there is no network, and of the host's files only /usr, the read-only
mounts and the one socket are seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

WORK = "/work"  # the job's folder and working directory
SOCKET = "/run/model.sock"  # where a job finds the gateway, if it was given one


@dataclass(frozen=True)
class Limits:
    """wall_s, cpu_s: seconds (CPU of all processes together). memory_mib: of all processes together,
    swap included. processes: and threads. file_mib: the largest file. work_mib, work_files: of /work in
    all. output_bytes: kept of stdout and of stderr each; what is beyond is read and thrown away.
    collected_bytes, collected_files: copied out of /work at most."""

    wall_s: float = 60.0
    cpu_s: float = 60.0
    memory_mib: int = 512
    processes: int = 64
    file_mib: int = 64
    work_mib: int = 128
    work_files: int = 20_000
    output_bytes: int = 1 << 20
    collected_bytes: int = 16 << 20
    collected_files: int = 2_000


@dataclass(frozen=True)
class Job:
    """argv: the program, found by PATH=/usr/local/bin:/usr/bin:/bin inside. files: relative paths under
    /work -> content; the job may write to them. mounts: absolute path inside -> file or folder of the
    host, read-only. env: all of its environment besides PATH, HOME=/work, LANG=C.UTF-8. socket: a unix
    socket of the host, seen as SOCKET. collect: paths under /work, files or folders ("." is all of it),
    that are copied out at the end."""

    argv: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    socket: str | None = None
    limits: Limits = field(default_factory=Limits)
    collect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """exit_code: None where the job was ended from outside, and `ended` says by what: "wall time",
    "CPU time", "memory" (also where the parent went on and exited 0), "disk"; "" where it ended by
    itself (a signal of its own is -N, as subprocess says). files: what was copied out, relative to
    /work. refused: (path, why) of what was not: links, devices, fifos, hard links, names that are not
    UTF-8 or have control characters, past the caps. truncated: stdout or stderr was cut."""

    exit_code: int | None
    ended: str
    stdout: bytes
    stderr: bytes
    truncated: bool
    files: Mapping[str, bytes]
    refused: tuple[tuple[str, str], ...]
    wall_s: float
    cpu_s: float


class SandboxError(Exception):
    """The sandbox itself failed (it could not be started, its disk is gone): says nothing of the job,
    which may be run again."""


class Box(Protocol):
    """A back end, open. run may be called from many threads at once. unenforced: the limits that this
    machine cannot hold, each as a sentence for the log."""

    name: str
    unenforced: tuple[str, ...]

    def run(self, job: Job) -> Outcome: ...

    def close(self) -> None: ...
