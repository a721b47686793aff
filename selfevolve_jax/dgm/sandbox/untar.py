"""Reads a tar that nobody vouches for, from memory. Every step goes forward by 512 bytes or more and
copies nothing that it does not give out, which Python's tarfile does not promise of a hostile one.

The formats are ustar, GNU's long names ("L", "K") and pax ("x", of which path and linkpath are read).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
MOST_HEADER = 1 << 16  # bytes of a long name or a pax header


class BadTar(ValueError):
    """It is broken, or says what these formats do not have."""


@dataclass(frozen=True)
class Member:
    """kind: "file", "folder", "link", "hard link", or "other". content: of a file; a view."""

    name: bytes
    kind: str
    link: bytes
    content: memoryview


KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder", b"2": "link", b"1": "hard link"}


def members(tar: bytes | bytearray) -> Iterator[Member]:
    """Raises BadTar where it breaks off, after what came before it."""
    view = memoryview(tar)
    at = 0
    long: dict[str, bytes] = {}
    while True:
        header = bytes(view[at : at + BLOCK])
        if len(header) < BLOCK:
            raise BadTar("it breaks off")
        if header == bytes(BLOCK):
            return
        _check_sum(header)
        kind = header[156:157]
        size = _number(header[124:136])
        at += BLOCK
        content = view[at : at + size]
        if len(content) < size:
            raise BadTar("it breaks off")
        at += -(-size // BLOCK) * BLOCK
        if kind in (b"L", b"K", b"x", b"g"):
            if size > MOST_HEADER:
                raise BadTar(f"a name or header of {size} bytes")
            if kind in (b"L", b"K"):
                long["path" if kind == b"L" else "linkpath"] = bytes(content).rstrip(b"\0")
            elif kind == b"x":
                long |= _pax(bytes(content))
            continue
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
            name = prefix + b"/" + name
        yield Member(
            name=long.get("path", name),
            kind=KINDS.get(kind, "other"),
            link=long.get("linkpath", _text(header[157:257])),
            content=content,
        )
        long = {}


def _check_sum(header: bytes) -> None:
    if sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) != _number(header[148:156]):
        raise BadTar("a header with a wrong sum")


def _number(field: bytes) -> int:
    """Octal digits. (The other form is for sizes of 8 GiB and more.)"""
    try:
        value = int(field.strip(b" \0") or b"0", 8)
    except ValueError as e:
        raise BadTar("a number that is none") from e
    if value < 0:
        raise BadTar("a number below 0")
    return value


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _pax(content: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    while content:
        length, space, _ = content.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < 7 else 0
        if not space or end <= len(length) + 1 or end > len(content) or content[end - 1] != 10:
            raise BadTar("a pax header that is none")
        key, _, value = content[len(length) + 1 : end - 1].partition(b"=")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise BadTar("a pax header of a size or of holes")
        if key in (b"path", b"linkpath"):
            found[key.decode()] = value
        content = content[end:]
    return found
