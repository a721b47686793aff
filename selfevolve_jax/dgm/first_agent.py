"""The initial coding agent as a tree: the folder agent/, which is read and never imported."""

from __future__ import annotations

import os
from pathlib import Path

from selfevolve_jax.dgm.contract import Tree
from selfevolve_jax.errors import UserError

FOLDER = Path(__file__).parent / "agent"
ENTRY_POINT = "coding_agent.py"
CACHES = frozenset(("__pycache__", ".git", ".pytest_cache", ".mypy_cache", ".ruff_cache"))


def load_agent(folder: str | os.PathLike[str] = FOLDER) -> Tree:
    """All files of a folder, without caches and .git, in the order of their paths. UserError where it
    is no agent, or holds a link."""
    folder = Path(folder)
    if not (folder / ENTRY_POINT).is_file():
        raise UserError(
            f"{folder} is no coding agent: it has no {ENTRY_POINT}. "
            "Fix: pass a folder laid out as docs/dgm_agent.md says."
        )
    tree = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not CACHES.isdisjoint(name.split("/")):
            continue
        if path.is_symlink():
            raise UserError(
                f"{path} is a link. Fix: put the file itself there; agents hold no links."
            )
        if path.is_file():
            tree[name] = path.read_bytes()
    return tree
