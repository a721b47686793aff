"""Uids that no account has, one for each slot of each controller on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from selfevolve_jax.errors import UserError

# Above what useradd, subuid (from 100,000 up) and systemd-nspawn (to 1,879,048,191) give out.
FIRST = 1_900_000_000
MOST = 1000
LOCKS = Path("/run/selfevolve-uids")


@dataclass
class Lock:
    """Held as long as this process lives, or until close."""

    uid: int
    fd: int

    def close(self) -> None:
        os.close(self.fd)


def shared_gid() -> int:
    """One for all slots, so that a unix socket can be shared with them and with no one else."""
    return first()


def first(uid_map: str | None = None) -> int:
    """The first of MOST uids that exist in this user namespace; the top ones where it has few."""
    text = Path("/proc/self/uid_map").read_text() if uid_map is None else uid_map
    ends = [int(start) + int(count) for start, _, count in map(str.split, text.splitlines())]
    start = min(FIRST, max(ends, default=0) - MOST)
    if start < 1000:
        raise UserError(
            "this is root of a user namespace with too few uids for a sandbox to drop to one of; "
            "run as an ordinary user, or as the host's root"
        )
    return start


def take() -> Lock:
    """A uid that no other slot holds and no process has."""
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    used = in_use()
    start = first()
    for uid in range(start + 1, start + MOST):
        fd = os.open(LOCKS / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        if uid not in used:
            return Lock(uid, fd)
        os.close(fd)
    raise UserError(f"all {MOST} uids for sandboxes are taken; are other runs still going?")


def in_use() -> set[int]:
    """The uids of all processes."""
    found: set[int] = set()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                found.add(path.stat().st_uid)
    return found
