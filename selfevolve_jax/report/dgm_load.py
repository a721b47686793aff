"""The arms of a DGM run as its page needs them: folds over their logs, and which agent is the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevolve_jax import run_dir
from selfevolve_jax.dgm import archive, events, staged
from selfevolve_jax.dgm.archive import Node
from selfevolve_jax.errors import UserError
from selfevolve_jax.report.untrusted import shown


@dataclass(frozen=True)
class Arm:
    """folder: holds events.jsonl and agents.git. torn: bytes of an event that is being written, or
    never was to its end. best: by the summary; while there is none, as `best_of`."""

    name: str
    folder: Path
    nodes: Mapping[int, Node]
    events: Sequence[Mapping[str, Any]]
    torn: int
    best: int | None


def load(folder: Path) -> list[Arm]:
    """The arms of a run, in the order in which they began. UserError for a damaged log."""
    summary = run_dir.summary_so_far(folder)
    best = {name: told.get("best") for name, told in summary.get("arms", {}).items()}
    arms = []
    for name, path in logs(folder).items():
        told, torn = events.read(path)
        try:
            nodes = archive.fold(told)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: an event lacks something, or speaks of an agent that no event has made "
                f"({shown(str(error))[:80]}). Fix: restore the file."
            ) from error
        for node in nodes.values():
            if node.parent is not None and not (node.parent in nodes and node.parent < node.id):
                raise UserError(
                    f"{path}: agent {node.id} has parent {node.parent}, which is none before it. "
                    "Fix: restore the file."
                )
        chosen = best.get(name)
        chosen = chosen if chosen in nodes else best_of(nodes.values())
        arms.append(Arm(name, path.parent, nodes, told, torn, chosen))
    return sorted(
        arms, key=lambda arm: arm.events[0].get("time", 0) if arm.events else float("inf")
    )


def valid(node: Node) -> bool:
    """It has a tree, was evaluated on train, and gave an answer there at least once."""
    return node.tree is not None and any(not e.empty for e in node.on("train"))


def best_of(nodes: Iterable[Node]) -> int | None:
    """Of the valid agents that were tried on the most tasks of train, the one with the highest score,
    and of equals the first: a high score on a first, small stage is not held against one on all."""
    ranks = {node.id: rank(node) for node in nodes if valid(node)}
    return max(ranks, key=lambda id: (ranks[id], -id), default=None)


def rank(node: Node) -> tuple[int, float]:
    on = node.on("train")
    return len({e.task for e in on}), staged.score(on)


def logs(folder: Path) -> dict[str, Path]:
    """Arm -> its log."""
    found = {path.parent.name: path for path in sorted(folder.glob(f"arms/*/{events.NAME}"))}
    alone = folder / events.NAME
    return found or ({"run": alone} if alone.exists() else {})
