"""Texts that an agent or a model wrote, made fit for a page: cut to a size, and with nothing in them
that a browser or a reader's eye obeys. Escaping itself is jinja2's and markupsafe's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from markupsafe import escape

# Control characters, half surrogates, and marks that turn the direction of text, by which source can
# be made to read as other than it is (CVE-2021-42574).
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def shown(text: str) -> str:
    """`text` with what HTML cannot hold, or a reader should not be led by, as �."""
    return UNFIT.sub("�", text)


@dataclass(frozen=True)
class Excerpt:
    """text: what of it is shown. size, left_out: bytes of the whole and of what is not shown. where:
    the file, relative to the run, "" for none. why: there is no text, and why."""

    text: str = ""
    size: int = 0
    left_out: int = 0
    where: str = ""
    why: str = ""


def cut(text: str, most: int) -> Excerpt:
    """`text` in about `most` bytes: its beginning and its end."""
    data = shown(text).encode()
    return _fitted(data, len(data), most, "")


def read(root: Path, folder: str, name: str, most: int, said: str) -> Excerpt:
    """The file root/folder/name in about `most` bytes of a page, however large it is. folder: as an
    event names it, so that it must not lead out of root. said: what the page calls root."""
    where = str(PurePosixPath(said, folder, name))
    if not folder:
        return Excerpt(why="none was kept")
    path = root / folder / name
    if ".." in path.parts or not path.resolve().is_relative_to(root.resolve()):
        return Excerpt(where=where, why="its path leads out of the run")
    if not path.is_file():
        return Excerpt(where=where, why=f"none at {where}")
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            data = file.read(2 * most)
            if size > 2 * most:
                file.seek(size - most)
                data = data[:most] + file.read(most)
    except OSError as error:
        return Excerpt(where=where, why=f"{where} cannot be read: {error.strerror}")
    return _fitted(data, size, most, where)


def _fitted(data: bytes, size: int, most: int, where: str) -> Excerpt:
    """data: all of it, or its first and its last `most` bytes. What grows by escaping (5 bytes for a
    quotation mark) is cut shorter."""
    keep = most
    while True:
        if size <= keep:
            text = _text(data)
        else:
            head = max(1, 2 * keep // 3)
            gap = f"\n… {size - keep:,} bytes left out …\n"
            text = _text(data[:head]) + gap + _text(data[-max(1, keep - head) :])
        cost = len(escape(text).encode())
        if cost <= 1.5 * most + 60:
            return Excerpt(text, size, max(0, size - keep), where)
        keep = min(keep, size) * most // cost


def _text(data: bytes) -> str:
    return shown(data.decode("utf-8", "replace"))
