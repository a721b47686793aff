"""The sandbox that Docker or Podman holds, where an engine answers.

One container a job, with no network, no capabilities, a read-only image, and /work in memory. In the
container a shell unpacks the files from a tar on stdin, runs the job, ends all that is left of it, and
writes a mark and a tar of /work behind the job's own output. That tar is as little trusted as if the
job had made it.

Tested with a stand-in for the engine's program, which checks the arguments and runs the shell in
bubblewrap: no engine was at hand.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import secrets
import shutil
import subprocess
import tarfile
import threading
import time
from typing import BinaryIO

from selfevolve_jax.dgm.sandbox import cgroups, copy_out, untar, workdir
from selfevolve_jax.dgm.sandbox.job import SOCKET, WORK, Job, Outcome, SandboxError
from selfevolve_jax.errors import UserError

ENGINES = ("docker", "podman")
IMAGE = "docker.io/library/python:3.12-slim"  # with sh, tar and what the jobs start
ASK_S = 20.0  # for the engine to answer a question
GRACE_S = 20.0  # beyond the wall time: to start, and to hand over /work
NOBODY = 65534
PATH = "/usr/local/bin:/usr/bin:/bin"

# $1: the mark. TERM, from outside only in earnest, ends the job; what it left in /work still comes out.
# `times` tells the CPU seconds of all that was waited for.
INSIDE = """
mark=$1; shift
tar -xf - -C / || exit 125
cd /work || exit 125
"$@" < /io/stdin & job=$!
trap 'kill -9 $job' TERM
wait $job; code=$?
trap '' TERM
kill -9 -1 2>/dev/null
wait
printf '%s%s\\n' "$mark" "$code"
times
tar -cf - -C / work 2>/dev/null
exit 0
"""


class Container:
    """A Box (see job.py)."""

    def __init__(self, engine: str, program: str, image: str, workers: int):
        self.name = engine
        self.unenforced: tuple[str, ...] = (
            "CPU time: each process is held to it, not all together (a container tells it at its end)",
            "the end of a job whose controller is killed: its container goes on until the next start",
        )
        self._program = program
        self._image = image
        self._slots = threading.Semaphore(workers)
        self._closed = False
        self._running: set[str] = set()

    def run(self, job: Job) -> Outcome:
        """Raises SandboxError where the engine fails, ValueError where the job cannot be meant."""
        with self._slots:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            name = f"{cgroups.owner()}-{next(_count)}"
            self._running.add(name)
            try:
                return _run(self._program, self._image, name, job)
            finally:
                self._running.discard(name)
                _ask(self._program, "rm", "--force", name)

    def close(self) -> None:
        self._closed = True
        for name in list(self._running):
            _ask(self._program, "rm", "--force", name)


_count = itertools.count()


def open_container(engine: str, workers: int = 2, image: str = IMAGE) -> Container:
    """Raises UserError where the engine does not answer or lacks the image."""
    program = shutil.which(engine)
    if program is None:
        raise UserError(f"no {engine} here; run: apt-get install {engine}")
    code, _, said = _ask(program, "version")
    if code != 0:
        raise UserError(
            f"{engine} is here but no engine answers ({said}); start it, then try again"
        )
    if _ask(program, "image", "inspect", image)[0] != 0:
        raise UserError(f"{engine} has no image {image}; run: {engine} pull {image}")
    _, names, _ = _ask(program, "ps", "--all", "--format", "{{.Names}}")
    for name in names.split():
        if cgroups.is_leftover(name):
            _ask(program, "rm", "--force", name)
    return Container(engine, program, image, workers)


def _run(program: str, image: str, name: str, job: Job) -> Outcome:
    mark = secrets.token_hex(16)
    limits = job.limits
    argv = arguments(program, image, name, job, mark)
    started = time.monotonic()
    child = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin and child.stdout and child.stderr
    # /work's tar is at most its blocks and a header, a name and padding for each file
    tar_bytes = (limits.work_mib << 20) + limits.work_files * 4096
    out = _Output(limits.output_bytes, mark.encode(), tar_bytes)
    errors = _Output(limits.output_bytes, b"", 0)
    threads = [
        threading.Thread(target=_feed, args=(child.stdin, packed(job)), daemon=True),
        threading.Thread(target=out.read, args=(child.stdout,), daemon=True),
        threading.Thread(target=errors.read, args=(child.stderr,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    ended = ""
    try:
        child.wait(limits.wall_s)
    except subprocess.TimeoutExpired:
        ended = "wall time"
        _ask(program, "kill", "--signal", "TERM", name)
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            _ask(program, "rm", "--force", name)
            child.kill()
            child.wait()
    wall_s = time.monotonic() - started
    for thread in threads[1:]:
        thread.join(GRACE_S)
    if _ask(program, "inspect", "--format", "{{.State.OOMKilled}}", name)[1].strip() == "true":
        ended = "memory"
    told, tar = _told(out.rest) if out.marked else (None, b"")
    if told is None and not ended:
        said = bytes(errors.kept).decode(errors="replace").strip()[-500:]
        raise SandboxError(f"{program} ran no job (exit code {child.returncode}): {said}")
    cpu_s, code = told or (0.0, None)
    if not ended and cpu_s >= limits.cpu_s:
        ended = "CPU time"
    files, refused = unpacked(tar, job) if told else ({}, ())
    return Outcome(
        exit_code=None if ended else code,
        ended=ended,
        stdout=bytes(out.kept),
        stderr=bytes(errors.kept),
        truncated=out.truncated or errors.truncated,
        files=files,
        refused=refused,
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def arguments(program: str, image: str, name: str, job: Job, mark: str) -> list[str]:
    """The engine's command line."""
    limits = job.limits
    a = [program, "run", "--interactive", "--name", name, "--pull", "never", "--network", "none"]
    a += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--read-only"]
    a += ["--user", f"{NOBODY}:{NOBODY}", "--hostname", "sandbox", "--workdir", "/"]
    a += ["--pids-limit", str(limits.processes + 4)]
    a += ["--memory", f"{limits.memory_mib}m", "--memory-swap", f"{limits.memory_mib}m"]
    a += ["--ulimit", "core=0", "--ulimit", "nofile=1024", "--ulimit", "memlock=65536"]
    a += ["--ulimit", f"fsize={limits.file_mib << 20}"]
    cpu_s = max(1, round(limits.cpu_s + 0.5))
    a += ["--ulimit", f"cpu={cpu_s}:{cpu_s + 1}"]
    size = f"size={limits.work_mib}m,nr_inodes={limits.work_files}"
    a += ["--tmpfs", f"{WORK}:rw,exec,nosuid,nodev,mode=1777,{size}"]
    a += ["--tmpfs", "/tmp:rw,exec,nosuid,nodev,mode=1777,size=64m"]
    a += ["--tmpfs", f"/io:rw,noexec,nosuid,nodev,mode=1777,size={len(job.stdin) + (1 << 16)}"]
    a += ["--shm-size", "64m"]
    mounts = dict(job.mounts)
    if job.socket is not None:
        mounts[SOCKET] = job.socket
        # to connect is to write, and the job's user is another: the socket's folder keeps others out
        os.chmod(job.socket, 0o666)
    for target, source in mounts.items():
        if any("," in path or '"' in path for path in (target, source)):
            raise ValueError(f"a comma or quote in a mount: {source} at {target}")
        a += ["--mount", f"type=bind,source={os.path.abspath(source)},target={target},readonly"]
    for key, value in {"PATH": PATH, "HOME": WORK, "LANG": "C.UTF-8", **job.env}.items():
        if not key or "=" in key:
            raise ValueError(f"not a name of an environment variable: {key!r}")
        a += ["--env", f"{key}={value}"]
    return [*a, "--entrypoint", "/bin/sh", image, "-c", INSIDE, "sh", mark, *job.argv]


def packed(job: Job) -> bytes:
    """A tar of /work's files and the job's stdin."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        named = {f"work/{workdir.checked(path)}": text for path, text in job.files.items()}
        for path, content in {**named, "io/stdin": job.stdin}.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            member.mode = 0o644
            member.uid = member.gid = NOBODY
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def unpacked(
    tar: bytes | bytearray, job: Job
) -> tuple[dict[str, bytes], tuple[tuple[str, str], ...]]:
    """Of an untrusted tar of /work: the regular files that were to be collected, and (path, why) of
    what was refused."""
    limits = job.limits
    files: dict[str, bytes] = {}
    refused: dict[str, str] = {}
    left = limits.collected_bytes
    try:
        for member in untar.members(tar):
            path, why = _member(member, job)
            name = path.decode(errors="replace")
            if not path or (member.kind == "folder" and not why):
                continue
            if member.kind == "hard link":  # its other name came as a plain file
                other = member.link.removeprefix(b"work/").decode(errors="replace")
                if other in files:
                    left += len(files.pop(other))
                    refused[copy_out.shown(other.encode())] = copy_out.HARD_LINK
            if not why and len(files) >= limits.collected_files:
                why = "more files than may be copied out"
            if not why and len(member.content) > left:
                why = f"{len(member.content)} bytes; {left} are left of what may be copied out"
            if not why and name not in files:
                files[name] = bytes(member.content)
                left -= len(member.content)
            elif why and len(refused) < copy_out.REFUSED:
                refused[copy_out.shown(path)] = why
    except untar.BadTar as e:
        refused["…"] = f"the container's tar is bad: {e}"
    return dict(sorted(files.items())), tuple(refused.items())


def _member(member: untar.Member, job: Job) -> tuple[bytes, str]:
    """(path under /work, b"" where it is not to be collected; "" or why it is refused)."""
    first, *parts = member.name.removesuffix(b"/").split(b"/")
    if first != b"work" or not all(part not in (b"", b".", b"..") for part in parts):
        return member.name, "it leads out of /work"
    path = b"/".join(parts)
    wanted = [os.fsencode(c.rstrip("/")) for c in job.collect]
    if not any(c in (b".", path) or path.startswith(c + b"/") for c in wanted):
        return b"", ""
    if why := copy_out.bad_name(path):
        return path, why
    kinds = {"link": copy_out.LINK, "hard link": copy_out.HARD_LINK, "other": copy_out.NOT_REGULAR}
    return path, kinds.get(member.kind, "")


class _Output:
    """Reads a stream to its end: `most` bytes of what comes before the mark are kept, and `rest_most`
    of what comes behind it."""

    def __init__(self, most: int, mark: bytes, rest_most: int):
        self.kept = bytearray()
        self.rest = bytearray()
        self.truncated = False
        self.marked = False
        self._most, self._mark, self._rest_most = most, mark, rest_most

    def read(self, stream: BinaryIO) -> None:
        held = b""  # the beginning of a mark may be at its end
        while got := os.read(stream.fileno(), 1 << 16):
            if self.marked:
                self.rest += got[: self._rest_most - len(self.rest)]
                continue
            held += got
            if self._mark and self._mark in held:
                before, _, after = held.partition(self._mark)
                self._keep(before)
                self.marked = True
                self.rest += after
                held = b""
                continue
            keep = max(0, len(held) - len(self._mark)) if self._mark else len(held)
            self._keep(held[:keep])
            held = held[keep:]
        self._keep(held)

    def _keep(self, got: bytes) -> None:
        room = self._most - len(self.kept)
        self.kept += got[:room]
        self.truncated = self.truncated or len(got) > room


def _told(rest: bytearray) -> tuple[tuple[float, int] | None, bytes]:
    """((CPU seconds, exit code) or None, the tar) of what comes behind the mark: the code, a line of
    the shell's own times and one of its children's, such as "0m1.20s 0m0.10s", and the tar. A job can
    see the mark and write all this itself; it gains nothing that its files do not say anyway."""
    found = re.match(rb"(\d{1,3})\n\S+ \S+\n(\d+)m(\d+\.\d+)s (\d+)m(\d+\.\d+)s\n", rest[:200])
    if found is None:
        return None, b""
    cpu_s = 60 * (int(found[2]) + int(found[4])) + float(found[3]) + float(found[5])
    code = int(found[1])
    return (cpu_s, 128 - code if 128 < code <= 192 else code), bytes(rest[found.end() :])


def _feed(stream: BinaryIO, content: bytes) -> None:
    with contextlib.suppress(OSError):
        stream.write(content)
    with contextlib.suppress(OSError):
        stream.close()


def _ask(program: str, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, the last line of stderr) of the engine's program."""
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_S,
        )
    except subprocess.TimeoutExpired:
        return -1, "", f"no answer within {ASK_S:g} s"
    said = done.stderr.strip().splitlines()
    return done.returncode, done.stdout, said[-1] if said else ""
