"""Folders for sockets: removed at their end, or by whoever comes after a process that was killed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from selfevolve_jax.dgm import sockets

ROOT = Path(__file__).parents[2]
HOLDS = """
import os, socket, sys
from selfevolve_jax.dgm import sockets
with sockets.folder() as folder:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, "s"))
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder for temporary files, with a short path."""
    short = Path(os.path.realpath(subprocess.check_output(["mktemp", "-d"], text=True).strip()))
    monkeypatch.setattr("tempfile.tempdir", str(short))
    yield short
    short.rmdir()  # so it is empty


def test_a_folder_is_private_short_and_gone_afterwards(place):
    with sockets.folder() as one, sockets.folder() as two:
        assert os.stat(one).st_mode & 0o777 == 0o700
        assert sorted(map(str, place.iterdir())) == sorted((one, two))
        socket.socket(socket.AF_UNIX).bind(f"{two}/s")
        with sockets.folder():  # leaves alone what is held
            assert os.path.exists(f"{two}/s")
    assert not list(place.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(place):
    environment = {**os.environ, "TMPDIR": str(place)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    held = [process.stdout.readline().strip() for process in started if process.stdout]
    started[0].kill()
    started[0].wait()
    assert os.path.exists(f"{held[0]}/s")
    (place / f"{sockets.PREFIX}link").symlink_to(held[1])
    with sockets.folder():
        assert not os.path.exists(held[0]) and os.path.exists(f"{held[1]}/s")
    started[1].communicate("")
    (place / f"{sockets.PREFIX}link").unlink()
