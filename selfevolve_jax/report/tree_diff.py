"""How an agent's files differ from its parent's, read from the archive's bare git repository.

The files are an agent's own and may be made to mislead or to harm whoever reads them. So git runs as
plumbing alone: no external diff, no text conversion, no attributes but the built-in ones, no user's or
system's configuration, no network, and its output is cut.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from selfevolve_jax.report.untrusted import shown

COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
NO_FILES = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # git's tree without files
SECONDS = 20  # for one diff
READ_MOST = 64 << 20  # bytes of a diff that are counted
KEPT = 24_000  # bytes of a diff that may be shown
CONFIG = (
    *("-c", "core.attributesFile=/dev/null", "-c", "protocol.allow=never"),
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"),
)


@dataclass(frozen=True)
class Diff:
    """text: the first `kept` bytes of it, to the end of a line. size: bytes of all of it. why: there is
    none, and why."""

    text: str = ""
    kept: int = 0
    size: int = 0
    why: str = ""


def diff(repository: str | os.PathLike[str], old: str, new: str, most: int) -> Diff:
    """What must change in commit `old` to give `new`, cut to `most` bytes and to KEPT. Never raises:
    what goes wrong is in `why`."""
    for commit in (old, new):
        if not COMMIT.fullmatch(commit):
            return Diff(why=f"{commit!r} is no commit")
    if not Path(repository, "objects").is_dir():
        return Diff(why="agents.git is missing")
    try:
        kept, size = _diff(os.path.abspath(repository), old, new)
    except (OSError, RuntimeError) as error:
        return Diff(why=shown(str(error))[:300])
    if size > (most := min(most, KEPT)):
        kept = kept[:most]
        kept = kept[: kept.rfind(b"\n") + 1] or kept
    return Diff(shown(kept.decode("utf-8", "replace")), len(kept), size)


@functools.lru_cache(4096)  # commits do not change; --watch asks for the same again and again
def _diff(repository: str, old: str, new: str) -> tuple[bytes, int]:
    """(the first KEPT bytes, how many there are)."""
    command = ["git", "--no-replace-objects", "--git-dir", repository, *CONFIG]
    command += ["diff-tree", "-r", "-p", "--no-ext-diff", "--no-textconv", "--no-color"]
    command += ["--no-renames", "--src-prefix=a/", "--dst-prefix=b/", old, new, "--"]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        **{"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_ATTR_NOSYSTEM": "1"},
        # newer versions of git take a bare repository's attributes from HEAD: an agent's file
        "GIT_ATTR_SOURCE": NO_FILES,
        **{"GIT_NO_LAZY_FETCH": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
    }
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, cwd="/") as process:
        assert process.stdout is not None and process.stderr is not None
        alarm = threading.Timer(SECONDS, process.kill)
        alarm.start()
        try:
            kept, size = b"", 0
            while size < READ_MOST and (data := process.stdout.read(1 << 16)):
                kept, size = (kept + data)[:KEPT], size + len(data)
            if size >= READ_MOST:
                process.kill()
            said = process.stderr.read(1000).decode("utf-8", "replace").strip()
            code = process.wait()
        finally:
            alarm.cancel()
    if code and size < READ_MOST:
        raise RuntimeError(f"git could not compare them: {said or f'it ended with {code}'}")
    return kept, size


def coloured(text: str) -> Markup:
    """A diff as HTML: its lines in blocks by kind, escaped."""
    blocks: list[tuple[str, list[str]]] = []
    for line in text.removesuffix("\n").split("\n"):
        kind = _kind(line)
        if not blocks or blocks[-1][0] != kind:
            blocks.append((kind, []))
        blocks[-1][1].append(line)
    pieces = (Markup('<span class="{}">{}</span>').format(k, "\n".join(ls)) for k, ls in blocks)
    return Markup("").join(pieces)


def _kind(line: str) -> str:
    if line.startswith(("diff --git ", "--- ", "+++ ", "index ", "new file", "deleted file")):
        return "file"
    return {"+": "add", "-": "del", "@": "hunk"}.get(line[:1], "same")
