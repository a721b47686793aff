"""Watches a sandbox run: feeds stdin, keeps a capped part of its output, ends it at its limits."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time

from selfevolve_jax.dgm.sandbox import cgroups
from selfevolve_jax.dgm.sandbox.job import Job, SandboxError

LOOK_S = 0.05  # between looks at CPU time and memory
CHUNK = 1 << 16
START_S = 20.0
DRAIN_S = 5.0  # for what is left in the pipes once all writers are dead


class Watched:
    """child: the outer bwrap, or what becomes it. status: a pipe on which bwrap tells process 1's pid
    and at the end its exit code. After end(): ended, exit_code, stdout, stderr, truncated."""

    def __init__(self, child: subprocess.Popen[bytes], status: int, group: cgroups.Group):
        self.child = child
        self.group = group
        self.ended = ""
        self.exit_code: int | None = None
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.truncated = False
        self.children_cpu_s = 0.0
        self._status = status
        self._said = bytearray()
        self._init: int | None = None  # pidfd of process 1
        self._outer = os.pidfd_open(child.pid)
        self._most = 0
        self._selector = selectors.DefaultSelector()
        for fd in (status, child.stdout, child.stderr):
            assert fd is not None
            os.set_blocking(fd if isinstance(fd, int) else fd.fileno(), False)

    def folder(self, token: str, path: str) -> int:
        """A descriptor of the sandbox's folder, while it is held by --block-fd. token: a path that its
        root has, and the host's has not."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.child.poll() is None:
            self._read_status()
            pid = self._pid()
            if pid is not None and os.path.exists(f"/proc/{pid}/root{token}"):
                return os.open(
                    f"/proc/{pid}/root{path}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
            time.sleep(0.001)
        self.end()
        said = self.stderr.decode(errors="replace").strip()
        raise SandboxError(f"the sandbox did not start: {said or 'no message'}")

    def until_end(self, job: Job, deadline: float, closing: threading.Event) -> None:
        """Returns when the sandbox has ended by itself, or `ended` says why it must."""
        self._most = job.limits.output_bytes
        child, selector = self.child, self._selector
        assert child.stdin and child.stdout and child.stderr
        stdin = memoryview(job.stdin)
        selector.register(self._outer, selectors.EVENT_READ)
        selector.register(self._status, selectors.EVENT_READ)
        selector.register(child.stdout, selectors.EVENT_READ, self.stdout)
        selector.register(child.stderr, selectors.EVENT_READ, self.stderr)
        if stdin:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
        else:
            child.stdin.close()
        look = time.monotonic() + LOOK_S
        while True:
            now = time.monotonic()
            if now >= look:
                look = now + LOOK_S
                self.ended = self._over(job) or ("closed" if closing.is_set() else "")
            if now >= deadline:
                self.ended = self.ended or "wall time"
            if self.ended:
                return
            for key, _ in selector.select(max(0.0, min(look, deadline) - now)):
                if key.fileobj == self._outer:
                    return
                if key.fileobj == self._status:
                    self._read_status()
                elif key.fileobj is child.stdin:
                    stdin = self._feed(stdin)
                else:
                    self._keep(key.fileobj.fileno(), key.data)  # type: ignore[union-attr]

    def end(self) -> None:
        """Ends what is left of it, waits until all is gone, and reads the rest of its output."""
        if self.child.returncode is not None:
            return
        self._read_status()
        exited = bool(selectors_ready(self._outer))
        if not exited:
            self._kill()
        _, code, usage = os.wait4(self.child.pid, 0)
        self.child.returncode = os.waitstatus_to_exitcode(code)
        self.children_cpu_s = usage.ru_utime + usage.ru_stime
        if not self.group.kill():
            raise SandboxError("processes of a job do not die: a device or file system hangs?")
        self._drain()
        self._read_status()
        code = _field(self._said, "exit-code")
        if code is not None:
            self.exit_code = 128 - code if 128 < code <= 192 else code
        self._selector.close()
        for fd in (self._outer, self._init):
            if fd is not None:
                os.close(fd)
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            if pipe is not None:
                pipe.close()

    def _kill(self) -> None:
        """Process 1 first: all of its namespace goes with it, and bwrap then tells of them."""
        self._pid()
        with contextlib.suppress(ProcessLookupError):
            if self._init is not None:
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
                if selectors_ready(self._outer, 2.0):
                    return
            signal.pidfd_send_signal(self._outer, signal.SIGKILL)

    def _over(self, job: Job) -> str:
        if self.group.oom_kills() > 0:
            return "memory"
        cpu_s = self.group.cpu_s()
        return "CPU time" if cpu_s is not None and cpu_s >= job.limits.cpu_s else ""

    def _pid(self) -> int | None:
        pid = _field(self._said, "child-pid")
        if pid is not None and self._init is None:
            with contextlib.suppress(ProcessLookupError):
                self._init = os.pidfd_open(pid)
        return pid

    def _read_status(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while got := os.read(self._status, CHUNK):
                self._said += got
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._status)
        self._pid()

    def _feed(self, stdin: memoryview) -> memoryview:
        assert self.child.stdin
        try:
            stdin = stdin[os.write(self.child.stdin.fileno(), stdin[:CHUNK]) :]
        except BrokenPipeError:
            stdin = stdin[:0]
        if not stdin:
            self._selector.unregister(self.child.stdin)
            self.child.stdin.close()
        return stdin

    def _keep(self, fd: int, kept: bytearray) -> bool:
        """One read; False at the end of it."""
        got = os.read(fd, CHUNK)
        room = self._most - len(kept)
        kept += got[:room]
        self.truncated = self.truncated or len(got) > room
        if not got:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(fd)
        return bool(got)

    def _drain(self) -> None:
        assert self.child.stdout and self.child.stderr
        self._most = self._most or CHUNK
        for pipe, kept in ((self.child.stdout, self.stdout), (self.child.stderr, self.stderr)):
            with contextlib.suppress(BlockingIOError):
                while self._keep(pipe.fileno(), kept):
                    pass


def selectors_ready(fd: int, seconds: float = 0.0) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _field(said: bytearray, name: str) -> int | None:
    """Of the JSON objects that bwrap wrote, one a line."""
    for line in bytes(said).splitlines():
        with contextlib.suppress(ValueError):
            value = json.loads(line).get(name)
            if value is not None:
                return int(value)
    return None
