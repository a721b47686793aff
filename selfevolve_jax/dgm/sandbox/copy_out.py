"""Files out of a folder that untrusted programs made: only regular files with one name, by openat2.

Done after all of the job's processes are dead, so nothing moves while it is read.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
from collections.abc import Iterator, Sequence

OPENAT2 = 437  # on every architecture
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8
DEPTH = 64  # folders deeper than this are refused
LINK = "a symbolic link"
NOT_REGULAR = "not a regular file"
HARD_LINK = "it has more than one name (a hard link)"
NAMES = 100_000  # looked at, at most
REFUSED = 200  # refusals listed one by one; the rest is counted

_libc = ctypes.CDLL(None, use_errno=True)


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_beneath(folder: int, name: bytes, flags: int) -> int:
    """A file descriptor of folder/name that no link and no other mount led to. Raises OSError."""
    resolve = RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
    how = _How(flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0, resolve)
    size = ctypes.sizeof(how)
    fd = _libc.syscall(
        ctypes.c_long(OPENAT2), ctypes.c_int(folder), name, ctypes.byref(how), ctypes.c_size_t(size)
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def shown(name: bytes) -> str:
    """A name as it may be printed: no control characters, no broken UTF-8."""
    text = name.decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bad_name(path: bytes) -> str:
    """Why a path is refused, "" where it is not: names are printed, and are keys of records."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    return "" if text.isprintable() else "its name has control characters"


def copy_out(
    work: int, wanted: Sequence[str], most_bytes: int, most_files: int
) -> tuple[dict[str, bytes], tuple[tuple[str, str], ...]]:
    """Of the folder open as `work`: path -> content of what is at or below each wanted path, and
    (path, why) of what was refused. What is wanted and not there is neither."""
    taken: dict[str, bytes] = {}
    refused: dict[str, str] = {}
    more = 0
    left = most_bytes
    for path, why in _walk(work, wanted):
        if path.decode(errors="replace") in taken:
            continue
        if not why:
            content, why = _read(work, path, left, len(taken) < most_files)
            if not why:
                taken[path.decode()] = content
                left -= len(content)
                continue
        if len(refused) < REFUSED:
            refused[shown(path)] = why
        else:
            more += 1
    listed = list(refused.items())
    if more:
        listed.append(("…", f"{more} more refused"))
    return taken, tuple(listed)


def _walk(work: int, wanted: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    """(path, "" or why it is refused) of everything that is no folder, NAMES at most."""
    seen = 0
    for start in wanted:
        pending = [os.fsencode("" if start in (".", "./") else start.rstrip("/"))]
        while pending:
            path = pending.pop()
            if path.count(b"/") >= DEPTH:
                yield path, "too deep"
                continue
            try:
                fd = open_beneath(work, path or b".", os.O_RDONLY | os.O_DIRECTORY)
            except OSError as e:
                if e.errno == errno.ENOENT:
                    continue
                yield path, "" if e.errno == errno.ENOTDIR else _reason(e)
                continue
            try:
                with os.scandir(fd) as all_entries:
                    entries = itertools.islice(all_entries, NAMES - seen)
                    names = sorted(
                        (os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in entries
                    )
            finally:
                os.close(fd)
            seen += len(names)
            if seen >= NAMES:
                yield path, f"more than {NAMES} names; the rest was not looked at"
                return
            for name, folder in names:
                full = path + b"/" + name if path else name
                if not folder:
                    yield full, ""
            pending += [path + b"/" + n if path else n for n, folder in reversed(names) if folder]


def _read(work: int, path: bytes, left: int, room: bool) -> tuple[bytes, str]:
    if why := bad_name(path):
        return b"", why
    try:
        # O_NONBLOCK: a fifo must not make us wait; O_PATH first would be two calls for each file
        fd = open_beneath(work, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as e:
        return b"", _reason(e)
    with open(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return b"", NOT_REGULAR
        if found.st_nlink != 1:
            return b"", HARD_LINK
        if not room:
            return b"", "more files than may be copied out"
        if found.st_size > left:
            return b"", f"{found.st_size} bytes; {left} are left of what may be copied out"
        content = file.read(found.st_size)
    return content or b"", ""


def _reason(e: OSError) -> str:
    links = {errno.ELOOP: LINK, errno.EXDEV: "it leads out of /work"}
    return links.get(e.errno or 0) or (e.strerror or "it cannot be opened")
