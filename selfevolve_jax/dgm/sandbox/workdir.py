"""A job's /work: a tmpfs limited in bytes and inodes, mounted where only one thread can see it.

As root each slot's thread leaves the process's mount namespace for one of its own, so that nothing it
mounts is ever seen on the host, and all of it is gone when the process is, however that ends.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class DoesNotFit(Exception):
    """The job's own files are more than its /work holds."""


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def own_mounts() -> None:
    """Gives the calling thread (and its children) a mount namespace of its own. Needs root."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    _mount("none", "/", None, MS_REC | MS_PRIVATE, "")


def mount_tmpfs(path: str, size: int, inodes: int, mode: str = "700") -> None:
    """size: bytes. inodes: files, folders and links in all."""
    options = f"size={size},nr_inodes={inodes},mode={mode}"
    _mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, options)


def bind(source: str, target: str) -> None:
    """source seen at target too, whatever folders lead to source. (bwrap makes it read-only.)"""
    _mount(source, target, None, MS_BIND, "")


def unmount(path: str) -> None:
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH), f"unmount {path}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str) -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode(),
    )
    _check(result, f"mount {target}")


def checked(path: str) -> str:
    """path, if it is relative, stays inside and is spelt in one way. Raises ValueError."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a relative path inside /work: {path!r}")
    return path


def copy_in(work: int, files: Mapping[str, bytes], uid: int, gid: int) -> None:
    """Writes files into the folder open as `work`, fresh and ours alone, and gives them to uid. Raises
    DoesNotFit, and ValueError for a path that leaves it or is both a file and a folder."""
    made: set[str] = set()
    try:
        for path, content in files.items():
            parts = checked(path).split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in made:
                    made.add(folder)
                    os.mkdir(folder, 0o755, dir_fd=work)
                    os.chown(folder, uid, gid, dir_fd=work)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(path, flags, 0o644, dir_fd=work), "wb") as file:
                file.write(content)
                os.fchown(file.fileno(), uid, gid)
    except (FileExistsError, NotADirectoryError) as e:
        raise ValueError(f"both a file and a folder among a job's files: {e.filename!r}") from e
    except OSError as e:
        raise DoesNotFit(f"the job's files do not fit into /work: {e}") from e
