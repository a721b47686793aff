"""Agents as whole trees in a bare git repository, one commit each under refs/agents/ID.

A tree is untrusted content: git sees it as objects alone, never as a work tree, and no attribute,
filter or configuration of the machine or of the tree applies. A commit's hash is a function of the
files and the parent, so a run that is killed and resumed makes the same ones.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from selfevolve_jax import run_dir
from selfevolve_jax.dgm.contract import Tree
from selfevolve_jax.errors import UserError

NAME = "agents.git"
MOST_FILES, MOST_BYTES = 2_000, 16 << 20


def refusal(tree: Tree) -> str:
    """Why this tree can be no agent; "" where it can. It must be small, and its paths plain: relative,
    printable, of no git's own names."""
    if not tree:
        return "it has no files"
    if len(tree) > MOST_FILES:
        return f"it has {len(tree)} files, more than {MOST_FILES}"
    if (size := sum(map(len, tree.values()))) > MOST_BYTES:
        return f"it has {size} bytes, more than {MOST_BYTES}"
    for path in tree:
        parts = path.split("/")
        plain = all(part not in ("", ".", "..") and len(part) <= 200 for part in parts)
        if not plain or not path.isprintable() or '"' in path or "\\" in path or len(path) > 1000:
            return f"the path {path[:200]!r} is not a plain relative one"
        if any(part.lower().rstrip(". ").startswith(".git") for part in parts):
            return f"the path {path[:200]!r} is one of git's own"
        if any("/".join(parts[:n]) in tree for n in range(1, len(parts))):
            return f"the path {path[:200]!r} lies in what is a file"
    return ""


def create(folder: str | os.PathLike[str]) -> Path:
    """The repository at folder, made if it is not there."""
    repository = Path(folder)
    if not (repository / "HEAD").exists():
        with run_dir.disk_errors(run_dir.absolute(repository)):
            repository.mkdir(parents=True, exist_ok=True)
        _git(repository, "init", "--quiet", "--bare", "--initial-branch=none")
    return repository


def put(repository: Path, agent: int, tree: Tree, parent: str | None) -> str:
    """The commit of the agent's tree, on disk when this returns. parent: its parent's commit. Raises
    ValueError for what `refusal` refuses."""
    if why := refusal(tree):
        raise ValueError(why)
    lines: list[bytes] = [
        f"commit refs/agents/{agent}\n".encode(),
        b"committer selfevolve <selfevolve@localhost> 0 +0000\n",
        _data(f"agent {agent}".encode()),
        # A ref that an earlier life left is replaced, not gone on from.
        f"from {parent}\n".encode() if parent else b"",
        b"deleteall\n",
    ]
    for path, content in sorted(tree.items()):
        lines += [f'M 100644 inline "{path}"\n'.encode(), _data(content)]
    lines.append(b"done\n")
    _git(repository, "update-ref", "-d", f"refs/agents/{agent}")
    _git(repository, "fast-import", "--quiet", "--done", "--force", stdin=b"".join(lines))
    return _git(repository, "rev-parse", f"refs/agents/{agent}").decode().strip()


def get(repository: Path, commit: str) -> dict[str, bytes]:
    """The files of a commit."""
    listed = _git(repository, "ls-tree", "-r", "-z", _hash(commit)).split(b"\0")[:-1]
    entries = [(line.split(b"\t", 1)[1].decode(), line.split()[2]) for line in listed]
    wanted = b"".join(name + b"\n" for _, name in entries)
    answer = _git(repository, "cat-file", "--batch", stdin=wanted)
    tree, at = {}, 0
    for path, _ in entries:
        end = answer.index(b"\n", at)
        size = int(answer[at:end].split()[2])
        tree[path] = answer[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
    return tree


def _data(content: bytes) -> bytes:
    return b"data %d\n" % len(content) + content + b"\n"


def _hash(commit: str) -> str:
    if not (len(commit) in (40, 64) and set(commit) <= set("0123456789abcdef")):
        raise UserError(f"{commit!r} is not a commit. Fix: restore the run's event log.")
    return commit


def _git(repository: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    settings = ("gc.auto=0", "core.attributesFile=/dev/null", "core.fsync=committed,reference")
    given: Iterable[str] = (word for setting in settings for word in ("-c", setting))
    command = ["git", *given, "--git-dir", os.fspath(repository), *arguments]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment)
    except FileNotFoundError:
        raise UserError(
            "the program git is not there, and agents are kept by it. Fix: apt-get install git."
        ) from None
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip()[-500:]
        if "No space left" in told:
            raise OSError(28, told)
        raise UserError(f"git {arguments[0]} failed on {repository}: {told}")
    return done.stdout
