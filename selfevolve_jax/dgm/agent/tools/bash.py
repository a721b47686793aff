"""bash: runs a command in a new shell."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time

TIMEOUT_SECONDS = 120.0
MAX_OUTPUT_BYTES = 20_000  # of the output's beginning and end together


def tool_info() -> dict:
    return {
        "name": "bash",
        "description": (
            "Runs a command in a new bash shell in the repository and returns its output and exit "
            "code. Nothing is kept from one call to the next but files: what a command leaves "
            f"running is ended. A command may take {TIMEOUT_SECONDS:.0f} seconds and cannot read "
            "from standard input. There is no network."
        ),
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string", "description": "The command."}},
            "required": ["command"],
        },
    }


def tool_function(command: str) -> str:
    process = subprocess.Popen(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None  # as it is a pipe
    try:
        output = _read(process, process.stdout.fileno(), time.monotonic() + TIMEOUT_SECONDS)
        code = process.poll()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    end = f"exit code {code}" if code is not None else f"ended after {TIMEOUT_SECONDS:.0f} seconds"
    return f"{output}\n[{end}]"


def _read(process: subprocess.Popen, pipe: int, deadline: float) -> str:
    """What the process writes until it ends or its time is up; the middle is left out if it is
    long."""
    head, tail, total = bytearray(), bytearray(), 0
    half = MAX_OUTPUT_BYTES // 2
    while (left := deadline - time.monotonic()) > 0:
        ended = process.poll() is not None
        if select.select([pipe], [], [], 0 if ended else min(left, 0.05))[0]:
            data = os.read(pipe, 1 << 16)
            if not data:  # nobody can write any more, so the shell is about to end
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
                break
            total += len(data)
            room = half - len(head)
            head += data[:room]
            tail = (tail + data[room:])[-half:]
        elif ended:
            break
    left_out = total - len(head) - len(tail)
    middle = f"\n[{left_out} bytes left out]\n".encode() if left_out else b""
    return bytes(head + middle + tail).decode("utf-8", "replace")
