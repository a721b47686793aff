"""The archive: every agent that a run ever made, as a fold over its event log.

Nothing is kept beside the log: scores, children, costs and what is left to do are counted from it, so
no two of them can disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from selfevolve_jax.dgm.contract import Split, Usage


@dataclass(frozen=True)
class Evaluation:
    """One graded attempt. files: the folder of answer.txt and log.txt, relative to the run."""

    task: str
    seed: int
    split: Split
    group: str
    solved: bool
    partial: float
    empty: bool
    reason: str
    tests: Mapping[str, bool]
    usage: Usage
    cpu_s: float
    wall_s: float
    files: str


@dataclass
class Node:
    """One agent, or the try at one. tree: its commit in agents.git; None where no child came of it, and
    `reason` says why. children: how many nodes name it as their parent and have a tree."""

    id: int
    parent: int | None
    generation: int
    tree: str | None
    reason: str
    entry: str
    diagnosis: str
    flags: tuple[str, ...]
    usage: Usage
    seconds: float
    files: str
    time: float
    evaluations: list[Evaluation] = field(default_factory=list)
    children: int = 0

    def on(self, split: Split) -> list[Evaluation]:
        return [e for e in self.evaluations if e.split == split]


def fold(events: Iterable[Mapping[str, Any]]) -> dict[int, Node]:
    """Agents by id, in the order of their ids. An evaluation that is there twice (it cannot be, but a
    log may have been put together by hand) counts once."""
    nodes: dict[int, Node] = {}
    seen: set[tuple[int, str, int]] = set()
    for event in events:
        if event["event"] == "child" and event["agent"] not in nodes:
            nodes[event["agent"]] = Node(
                id=event["agent"],
                parent=event["parent"],
                generation=event["generation"],
                tree=event["tree"],
                reason=event["reason"],
                entry=event["entry"],
                diagnosis=event["diagnosis"],
                flags=tuple(event["flags"]),
                usage=Usage(**event["usage"]),
                seconds=event["seconds"],
                files=event["files"],
                time=event["time"],
            )
        elif event["event"] == "evaluated":
            key = (event["agent"], event["task"], event["seed"])
            if key not in seen:
                seen.add(key)
                nodes[event["agent"]].evaluations.append(_evaluation(event))
    for node in nodes.values():
        if node.parent is not None and node.tree is not None:
            nodes[node.parent].children += 1
    return dict(sorted(nodes.items()))


def _evaluation(event: Mapping[str, Any]) -> Evaluation:
    names = Evaluation.__dataclass_fields__
    return Evaluation(**{n: event[n] for n in names if n != "usage"}, usage=Usage(**event["usage"]))
