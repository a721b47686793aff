"""The archive: every agent that a run ever made, as a fold over its event log.

Nothing is kept beside the log: scores, children, costs and what is left to do are counted from it, so
no two of them can disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfevolve_jax.dgm.contract import Split, Usage
from selfevolve_jax.errors import UserError


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
    `reason` says why. by_split: its evaluations. children: how many nodes name it as their parent and
    have a tree."""

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
    by_split: dict[Split, list[Evaluation]] = field(default_factory=dict)
    children: int = 0

    @property
    def evaluations(self) -> list[Evaluation]:
        return [e for on_split in self.by_split.values() for e in on_split]

    def on(self, split: Split) -> Sequence[Evaluation]:
        return self.by_split.get(split, ())


def fold(events: Iterable[Mapping[str, Any]]) -> dict[int, Node]:
    """Agents by id. UserError where an event is about an agent that no event before it brought."""
    nodes: dict[int, Node] = {}
    for event in events:
        add(nodes, event)
    return dict(sorted(nodes.items()))  # children of one generation end in any order


def add(nodes: dict[int, Node], event: Mapping[str, Any]) -> None:
    """One more event. What is said twice (it cannot be, but a log may have been put together by hand)
    counts once."""
    if event["event"] == "child" and event["agent"] not in nodes:
        node = _node(event)
        if node.parent is not None and node.tree is not None:
            _known(nodes, node.parent).children += 1
        nodes[node.id] = node
    elif event["event"] == "evaluated":
        known = _known(nodes, event["agent"]).by_split.setdefault(event["split"], [])
        if not any((e.task, e.seed) == (event["task"], event["seed"]) for e in known):
            known.append(_evaluation(event))


def usage(nodes: Mapping[int, Node]) -> Usage:
    """What all models cost: for making agents and in their evaluations."""
    costs = (u for n in nodes.values() for u in (n.usage, *(e.usage for e in n.evaluations)))
    return sum(costs, Usage())


def _known(nodes: Mapping[int, Node], agent: int) -> Node:
    if agent not in nodes:
        raise UserError(
            f"the event log tells of agent {agent} before it was made. Fix: restore it."
        )
    return nodes[agent]


def _node(event: Mapping[str, Any]) -> Node:
    same = (
        "parent",
        "generation",
        "tree",
        "reason",
        "entry",
        "diagnosis",
        "seconds",
        "files",
        "time",
    )
    return Node(
        id=event["agent"],
        flags=tuple(event["flags"]),
        usage=Usage(**event["usage"]),
        **{name: event[name] for name in same},
    )


def _evaluation(event: Mapping[str, Any]) -> Evaluation:
    names = Evaluation.__dataclass_fields__
    return Evaluation(**{n: event[n] for n in names if n != "usage"}, usage=Usage(**event["usage"]))


def seconds(events: Iterable[Mapping[str, Any]]) -> float:
    """Wall time that a log tells of: of each life, from its "run" event to its last one."""
    total, last = 0.0, 0.0
    for event in events:
        if event["event"] != "run":
            total += event["time"] - last
        last = event["time"]
    return total
