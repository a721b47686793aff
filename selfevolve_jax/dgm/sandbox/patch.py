"""Patches of untrusted trees: made by git in a sandbox, applied here exactly or not at all.

git never sees the trees as a checkout, whose config, attributes, hooks and filters it might obey: it is
fed their content as a stream, into a bare repository that lives as long as the one job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from selfevolve_jax.dgm.contract import Tree
from selfevolve_jax.dgm.sandbox import workdir
from selfevolve_jax.dgm.sandbox.copy_out import shown
from selfevolve_jax.dgm.sandbox.job import Box, Job, Limits, SandboxError

MOST_BYTES = 8 << 20  # of a patch
NO_NEWLINE = b"\\ No newline at end of file"
HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: [^\n]*)?")
ESCAPES = {ord(k): v for k, v in zip('abtnvfr"\\', b'\a\b\t\n\v\f\r"\\', strict=True)}
EXTENDED = (
    b"index ",
    b"old mode 100",
    b"new mode 100",
    b"new file mode 100",
    b"deleted file mode 100",
)

GIT = """
set -e
git init --quiet --bare repository
cd repository
git fast-import --quiet
exec git -c core.quotePath=false diff-tree -p --text --no-ext-diff --no-textconv --no-renames \
    --no-color --full-index refs/heads/before refs/heads/after
"""
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TEMPLATE_DIR": "",
}


class PatchError(Exception):
    """A patch that cannot be made or does not apply. The message names the file."""


def diff(before: Tree, after: Tree, box: Box) -> str:
    """A patch for `git apply` and for apply(): unified, three lines of context; "" for no change.
    Raises PatchError for a changed file that is not text (UTF-8 without NUL) or has a name git does not
    take, and for a patch over MOST_BYTES; SandboxError."""
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    if not changed:
        return ""
    for path in changed:
        _check_path(path)
        for content in (before.get(path, b""), after.get(path, b"")):
            if not _is_text(content):
                raise PatchError(f"{shown(path.encode())} is not text, and a patch holds only text")
    stream = b"".join(
        _commit(name, {path: tree[path] for path in changed if path in tree})
        for name, tree in (("before", before), ("after", after))
    )
    limits = Limits(wall_s=120, cpu_s=60, work_mib=256, output_bytes=MOST_BYTES)
    outcome = box.run(Job(("sh", "-c", GIT), stdin=stream, env=ENVIRONMENT, limits=limits))
    if outcome.ended or outcome.truncated:
        raise PatchError(f"the patch is too large: {outcome.ended or f'over {MOST_BYTES} bytes'}")
    if outcome.exit_code != 0:
        said = outcome.stderr.decode(errors="replace").strip()[-300:]
        if "nvalid path" in said:
            raise PatchError(f"git takes no file of that name: {said}")
        raise SandboxError(f"git ended with {outcome.exit_code}: {said}")
    return outcome.stdout.decode()


def apply(tree: Tree, patch: str) -> dict[str, bytes]:
    """tree with patch applied: each hunk at its line, each line of context as it stands. A new
    dictionary. Raises PatchError, and then nothing is applied. Renames, copies, binary parts, links and
    paths that leave the tree are refused."""
    result = dict(tree)
    made: dict[str, bytes] = {}
    seen: set[str] = set()
    for path, new, gone, hunks in _files(patch):
        named = shown(path.encode())
        if path in seen:
            raise PatchError(f"{named} is changed twice")
        seen.add(path)
        if new and path in tree:
            raise PatchError(f"{named} is to be new, and is there already")
        if not new and path not in tree:
            raise PatchError(f"{named} is not there")
        content = _changed(named, tree.get(path, b""), hunks)
        result.pop(path, None)
        if gone and content:
            raise PatchError(f"{named} is to be deleted, but not all of it is in the patch")
        if not gone:
            made[path] = content
    result |= made
    folders = {path[:at] for path in result for at, c in enumerate(path) if c == "/"}
    for path in folders & result.keys():
        raise PatchError(f"{shown(path.encode())} is to be a file and a folder")
    return result


_Hunk = tuple[int, list[bytes], list[bytes]]  # first line (from 0), lines before, lines after


def _files(patch: str) -> Iterator[tuple[str, bool, bool, list[_Hunk]]]:
    """(path, new, deleted, hunks) of each file in it."""
    try:
        lines = patch.encode().split(b"\n")
    except UnicodeEncodeError as e:
        raise PatchError(f"the patch is not UTF-8: {e}") from e
    while lines and not lines[-1].strip():
        lines.pop()
    at = 0
    while at < len(lines):
        path, new, gone, at = _header(lines, at)
        hunks: list[_Hunk] = []
        while at < len(lines) and lines[at].startswith(b"@@"):
            hunk, at = _hunk(lines, at)
            hunks.append(hunk)
        _check_path(path)
        yield path, new, gone, hunks


def _header(lines: list[bytes], at: int) -> tuple[str, bool, bool, int]:
    """(path, new, deleted, the line behind it)."""
    names: list[bytes | None] = []
    new = gone = False
    start = lines[at]
    if start.startswith(b"diff --git "):
        names += _both(start[len(b"diff --git ") :])
        at += 1
        while at < len(lines) and lines[at].startswith(EXTENDED):
            new = new or lines[at].startswith(b"new file")
            gone = gone or lines[at].startswith(b"deleted file")
            at += 1
    if at < len(lines) and lines[at].startswith(b"--- "):
        if at + 1 == len(lines) or not lines[at + 1].startswith(b"+++ "):
            raise PatchError(f"line {at + 1}: a --- without its +++")
        old, fresh = _name(lines[at][4:], b"a/"), _name(lines[at + 1][4:], b"b/")
        new, gone = new or old is None, gone or fresh is None
        if (old is None) != new or (fresh is None) != gone:
            raise PatchError(f"line {at + 1}: its header and its --- and +++ say different things")
        names += [old, fresh]
        at += 2
    elif not names or (at < len(lines) and not lines[at].startswith(b"diff --git ")):
        line = shown(lines[min(at, len(lines) - 1)][:80])
        raise PatchError(f"line {at + 1} is no part of a patch of text files: {line}")
    different = {name for name in names if name is not None}
    if len(different) != 1:
        raise PatchError(f"line {at}: not one file's name, but {sorted(map(shown, different))}")
    try:
        return different.pop().decode(), new, gone, at
    except UnicodeDecodeError as e:
        raise PatchError(f"line {at}: a name that is not UTF-8") from e


def _hunk(lines: list[bytes], at: int) -> tuple[_Hunk, int]:
    found = HUNK.fullmatch(lines[at])
    if found is None:
        raise PatchError(f"line {at + 1}: not a hunk's header: {shown(lines[at][:80])}")
    first, old_count, _, new_count = (1 if g is None else int(g) for g in found.groups())
    old: list[bytes] = []
    new: list[bytes] = []
    at += 1
    while len(old) < old_count or len(new) < new_count:
        if at == len(lines):
            raise PatchError(f"line {at}: the patch ends within a hunk")
        kind, text = lines[at][:1], lines[at][1:] + b"\n"
        if kind not in (b" ", b"-", b"+", b""):
            raise PatchError(f"line {at + 1}: neither context nor change: {shown(lines[at][:80])}")
        at += 1
        if at < len(lines) and lines[at].startswith(b"\\"):
            text = text[:-1]
            at += 1
        if kind != b"+":
            old.append(text)
        if kind != b"-":
            new.append(text)
    if len(old) != old_count or len(new) != new_count:
        raise PatchError(f"line {at}: a hunk that does not have the lines that it counts")
    return (first if old_count == 0 else first - 1, old, new), at


def _changed(named: str, content: bytes, hunks: list[_Hunk]) -> bytes:
    lines = _lines(content)
    result: list[bytes] = []
    done = 0
    for first, old, new in hunks:
        if first < done or lines[first : first + len(old)] != old:
            raise PatchError(f"{named}: the patch does not fit at line {first + 1}")
        result += lines[done:first] + new
        done = first + len(old)
    result += lines[done:]
    if any(not line.endswith(b"\n") for line in result[:-1]):
        raise PatchError(f"{named}: a line without an end that is not the last")
    return b"".join(result)


def _lines(content: bytes) -> list[bytes]:
    """With their ends; by \\n alone, as git sees them."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _both(text: bytes) -> list[bytes | None]:
    """Of "a/NAME b/NAME", whose names are the same and may have spaces, or be quoted."""
    half = (len(text) - 1) // 2
    return [_name(text[:half], b"a/"), _name(text[half + 1 :], b"b/")]


def _name(text: bytes, prefix: bytes) -> bytes | None:
    """Without its prefix; None for /dev/null."""
    if text.startswith(b'"'):  # git ends a name that has spaces by a tab, quoted or not
        text = _unquoted(text.removesuffix(b"\t"))
    else:
        text = text.partition(b"\t")[0]
        if text == b"/dev/null":
            return None
    if not text.startswith(prefix):
        raise PatchError(f"a name that does not begin with {prefix.decode()}: {shown(text[:80])}")
    return text[len(prefix) :]


def _unquoted(text: bytes) -> bytes:
    """What git wrote in quotes, C's escapes and all."""
    if len(text) < 2 or not text.endswith(b'"'):
        raise PatchError(f"a quoted name without an end: {shown(text[:80])}")

    def character(found: re.Match[bytes]) -> bytes:
        escape = found[1]
        if escape.isdigit():
            return bytes([int(escape, 8) & 0xFF])
        if escape[0] not in ESCAPES:
            raise PatchError(f"a name with an unknown escape: {shown(text[:80])}")
        return bytes([ESCAPES[escape[0]]])

    return re.sub(rb"\\([0-7]{3}|.)", character, text[1:-1], flags=re.DOTALL)


def _commit(name: str, files: Mapping[str, bytes]) -> bytes:
    """For git fast-import: a branch of that name with just these files."""
    parts = [f"commit refs/heads/{name}\ncommitter a <a@b> 0 +0000\ndata 0\n\n".encode()]
    for path, content in files.items():
        # quoted, so that spaces and newlines are the name's
        quoted = re.sub(rb'["\\\n]', lambda c: b"\\%03o" % c[0][0], path.encode())
        parts.append(b'M 100644 inline "%s"\ndata %d\n%s\n' % (quoted, len(content), content))
    return b"".join(parts) + b"\n"


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _check_path(path: str) -> None:
    try:
        workdir.checked(path)
        path.encode()
    except ValueError as e:  # UnicodeEncodeError is one
        raise PatchError(f"not a path inside the tree: {path!r}") from e
    if any(part.lower() == ".git" for part in path.split("/")):
        raise PatchError(f"a path of git's own: {path!r}")
