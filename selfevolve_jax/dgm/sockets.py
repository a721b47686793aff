"""Folders for unix sockets: with short paths, for this user alone, and none is left for good by a
process that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator

PREFIX = "selfevolve-sockets-"
_LONGEST_PARENT = 60  # the path of a socket has at most 107 bytes


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """A folder until the end of the block. Those of killed processes, which none locks, are removed."""
    parent = tempfile.gettempdir()
    parent = parent if len(parent) < _LONGEST_PARENT else "/tmp"
    for path in glob.glob(os.path.join(glob.escape(parent), f"{PREFIX}*")):
        with contextlib.suppress(OSError), _locked(path):
            shutil.rmtree(path)
    new = tempfile.mkdtemp(prefix="selfevolve-new-", dir=parent)
    with _locked(new):  # before it has the name by which others would find it
        path = os.path.join(parent, PREFIX + os.path.basename(new).rpartition("-")[2])
        os.rename(new, path)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """OSError where another process, or another block, has it; or it is no folder of this user's."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(opened).st_uid != os.geteuid():
            raise PermissionError(path)
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)
