"""Watches a sandbox that runs: feeds it stdin, caps its output, and ends it at its limits."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time

from selfevolve_jax.dgm.sandbox import cgroups
from selfevolve_jax.dgm.sandbox.job import Job, SandboxError

LOOK_S = 0.05  # between looks at CPU time and memory
# Output past the cap is thrown away at this pace, so that a job that writes without end costs the
# controller little: a pipe of 64 KiB each time.
DISCARD_S = 0.005
CHUNK = 1 << 16
START_S = 20.0


class Watch:
    """child: the process that becomes the outer bwrap. status: a pipe (read end) on which bwrap tells
    process 1's pid, and at the end its exit code. After end(): ended (by what of ours, else ""),
    exit_code (None where the job never started or was ended), reaped_cpu_s, and the output."""

    def __init__(
        self, child: subprocess.Popen[bytes], status: int, group: cgroups.Group, output_bytes: int
    ):
        assert child.stdin and child.stdout and child.stderr
        self.ended = ""
        self.exit_code: int | None = None
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.truncated = False
        self.reaped_cpu_s = 0.0
        self._child = child
        self._group = group
        self._most = output_bytes
        self._status = status
        self._told = bytearray()
        self._outer = os.pidfd_open(child.pid)
        self._init: int | None = None  # a pidfd of process 1
        self._stdin = child.stdin.fileno()
        self._outputs = {child.stdout.fileno(): self.stdout, child.stderr.fileno(): self.stderr}
        for fd in (status, self._stdin, *self._outputs):
            os.set_blocking(fd, False)

    def folder_inside(self, token: str, path: str) -> int:
        """A descriptor of a folder of a sandbox that --block-fd holds before its job starts. token: a
        path that its root has, and the host's has not."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and not _readable(self._outer):
            self._read_status()
            root = f"/proc/{_field(self._told, 'child-pid')}/root"
            if os.path.exists(root + token):
                return os.open(root + path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            time.sleep(0.001)
        self.end()
        raise SandboxError(f"the sandbox did not start: {self.said()}")

    def until_end(self, job: Job, deadline: float, closing: threading.Event) -> None:
        """Returns when it has ended by itself, or `ended` says why it must."""
        assert self._child.stdin
        stdin = memoryview(job.stdin)
        poll = select.poll()
        for fd in (self._outer, self._status, *self._outputs):
            poll.register(fd, select.POLLIN)
        if stdin:
            poll.register(self._stdin, select.POLLOUT)
        else:
            self._child.stdin.close()
        slow: set[int] = set()  # outputs past their cap, read at a pace
        look = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= look:
                look = now + LOOK_S
                self.ended = self._over(job) or ("closed" if closing.is_set() else "")
            if now >= deadline:
                self.ended = self.ended or "wall time"
            if self.ended:
                return
            for fd in [fd for fd in slow if not self._keep(fd)]:
                slow.discard(fd)
            wait = min(look, deadline, now + DISCARD_S if slow else deadline) - now
            for fd, _ in poll.poll(max(0.0, wait) * 1000):
                if fd == self._outer:
                    return
                if fd == self._status:
                    if not self._read_status():
                        poll.unregister(fd)
                elif fd == self._stdin:
                    stdin = self._feed(stdin)
                    if not stdin:
                        poll.unregister(fd)
                        self._child.stdin.close()
                elif not self._keep(fd):
                    poll.unregister(fd)
                elif len(self._outputs[fd]) >= self._most:
                    poll.unregister(fd)
                    slow.add(fd)

    def end(self) -> None:
        """Ends what is left of it, waits until all of it is gone, and reads what is in the pipes.
        Raises SandboxError where processes do not die."""
        if self._child.returncode is not None:
            return
        self._read_status()
        if not _readable(self._outer):
            self._kill()
        _, code, usage = os.wait4(self._child.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(code)
        self.reaped_cpu_s = usage.ru_utime + usage.ru_stime
        gone = self._group.kill() and (self._init is None or _readable(self._init, cgroups.GONE_S))
        self._read_status()
        for fd in self._outputs:
            while self._keep(fd):
                pass
        shell = _field(self._told, "exit-code")
        if shell is not None:  # as shells say it: 128 + the signal
            self.exit_code = 128 - shell if 128 < shell <= 192 else shell
        for fd in (self._outer, self._init):
            if fd is not None:
                os.close(fd)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()
        if not gone:
            raise SandboxError("processes of a job do not die; is a device or a file system stuck?")

    def said(self) -> str:
        return self.stderr.decode(errors="replace").strip()[-500:] or "bwrap gave no message"

    def _kill(self) -> None:
        """Process 1 first: its whole namespace goes with it, and the outer bwrap can tell of it."""
        if self._init is None and _readable(self._status, 2.0):  # it has only just been started
            self._read_status()
        with contextlib.suppress(ProcessLookupError):
            if self._init is not None:
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
                if _readable(self._outer, 2.0):
                    return
            signal.pidfd_send_signal(self._outer, signal.SIGKILL)

    def _over(self, job: Job) -> str:
        if self._group.oom_kills() > 0:
            return "memory"
        cpu_s = self._group.cpu_s()
        return "CPU time" if cpu_s is not None and cpu_s >= job.limits.cpu_s else ""

    def _read_status(self) -> bool:
        """False once no more can come."""
        got = b"-"
        with contextlib.suppress(BlockingIOError):
            while got := os.read(self._status, CHUNK):
                self._told += got
        pid = _field(self._told, "child-pid")
        if pid is not None and self._init is None:
            with contextlib.suppress(ProcessLookupError):
                self._init = os.pidfd_open(pid)
        return bool(got)

    def _feed(self, stdin: memoryview) -> memoryview:
        """What is left of it."""
        try:
            return stdin[os.write(self._stdin, stdin[:CHUNK]) :]
        except BrokenPipeError:  # the job has closed it
            return stdin[:0]
        except BlockingIOError:
            return stdin

    def _keep(self, fd: int) -> bool:
        """One read of an output; False at its end, and where (once all is dead) nothing is left."""
        kept = self._outputs[fd]
        try:
            got = os.read(fd, CHUNK)
        except BlockingIOError:
            return self._child.returncode is None
        room = self._most - len(kept)
        kept += got[:room]
        self.truncated = self.truncated or len(got) > room
        return bool(got)


def _readable(fd: int, seconds: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _field(told: bytearray, name: str) -> int | None:
    """Of the JSON objects that bwrap wrote, one a line."""
    for line in bytes(told).splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line).get(name)
            if value is not None:
                return int(value)
    return None
