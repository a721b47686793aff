"""Which tasks evolution sees, and which it never does."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from selfevolve_jax.dgm.contract import Split, Task, seed_of
from selfevolve_jax.errors import UserError


def ordered(tasks: Sequence[Task], seed: int) -> list[Task]:
    """In an order that the seed draws, whatever order they came in. Every stretch of it holds the
    groups in their proportions, as nearly as whole tasks allow: each group's tasks, shuffled, lie at
    equal steps along it, from a start of the group's own (systematic sampling)."""
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[task.group].append(task)
    places: list[tuple[float, int, Task]] = []
    for name, members in groups.items():
        start = seed_of(seed, "group", name) / 2**63
        members.sort(key=lambda t: (seed_of(seed, "task", t.id), t.id))
        for rank, task in enumerate(members):
            places.append(((rank + start) / len(members), seed_of(seed, "tie", task.id), task))
    return [task for _, _, task in sorted(places, key=lambda p: (p[0], p[1], p[2].id))]


def choose(
    tasks: Sequence[Task],
    train: int,
    held_out: int,
    seed: int,
    usable: Callable[[Task], bool] = lambda task: True,
) -> list[Task]:
    """The first `train` usable tasks of the seed's order, then the next `held_out`, with their splits.
    Fewer train tasks are a beginning of more of them; how many are held out does not change which are
    trained on. usable: asked in order, and only as far as is needed. Raises UserError where there are
    too few, or where two tasks have one id."""
    for name, count, least in (("train", train, 1), ("held_out", held_out, 0)):
        if count < least:
            raise UserError(f"{name}={count} tasks: it must be at least {least}.")
    if len({task.id for task in tasks}) < len(tasks):
        raise UserError("two tasks have the same id. Fix: give each its own.")
    chosen: list[Task] = []
    for task in ordered(tasks, seed):
        if len(chosen) == train + held_out:
            break
        if usable(task):
            split: Split = "train" if len(chosen) < train else "held_out"
            chosen.append(dataclasses.replace(task, split=split))
    if len(chosen) < train + held_out:
        raise UserError(
            f"train={train} and held_out={held_out} ask for {train + held_out} tasks, and "
            f"{len(chosen)} of {len(tasks)} can be used here. Fix: ask for fewer."
        )
    return chosen
