"""A toy for the controller: an agent is one number, its skill; a task is solved by who has enough.

Run as a program it grows an arm in a folder, so that it can be killed: python -m tests.dgm.toy FOLDER
"""

from __future__ import annotations

import functools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfevolve_jax.dgm import controller
from selfevolve_jax.dgm.contract import Parent, Proposal, Result, Task, Usage, draws
from selfevolve_jax.dgm.recipe import DGMRecipe, plan_of
from selfevolve_jax.dgm.staged import StagesConfig
from selfevolve_jax.dgm.tools import Tools, here

TASKS = tuple(
    Task(f"{split}-{i}", split, f"g{i % 5}")
    for split, n in (("train", 12), ("held_out", 6), ("transfer", 3))
    for i in range(n)
)
RECIPE = DGMRecipe(generations=6, children=2, stages=StagesConfig(sizes=(4, 8)), seed=5)


class Benchmark:
    """calls: a file that each attempt is noted in when it begins."""

    name, excluded = "toy", {}
    tasks = TASKS

    def __init__(self, seconds: float = 0.0, calls: Path | None = None) -> None:
        self.seconds, self.calls = seconds, calls

    def evaluate(self, agent, task, seed, box, models) -> Result:
        if self.calls is not None:
            with open(self.calls, "a") as file:
                file.write(json.dumps([agent_id(agent), task.id, seed, time.time()]) + "\n")
        time.sleep(self.seconds)
        skill = int(agent["skill.txt"])
        solved = draws(task.id, "hardness").random() * 10 < skill
        return Result(
            solved=solved,
            partial=float(solved),
            empty=skill == 0,
            reason="" if solved else "too hard",
            answer=f"{skill} on {task.id}",
            log="tried\n",
            usage=Usage(1, 10, 5, 0.01),
        )

    def describe(self, task) -> str:
        return task.id


class Proposer:
    def propose(self, parent: Parent, seed: int, box, models) -> Proposal:
        rng = draws(seed, "toy")
        if rng.random() < 0.2:
            return Proposal(None, "it did not compile", raw="raw")
        skill = max(0, min(10, int(parent.maker["skill.txt"]) + rng.choice((-1, 1, 2))))
        tree = {"skill.txt": str(skill).encode(), "id": b"%d" % seed}
        entry = ", ".join(f"{task.id} {result.answer}" for task, result in parent.attempts)
        return Proposal(tree, "", entry=entry, diagnosis="more skill")


def agent_id(agent) -> str:
    return agent.get("id", b"first").decode()


def tools(benchmark: Any, proposer: Any = None) -> Tools:
    made: Any = Tools(benchmark, proposer or Proposer(), None, None, None)  # pyright: ignore
    return replace(made, submit=functools.partial(here, made))


def run(folder: Path, recipe: DGMRecipe = RECIPE, arm: Any = "dgm", **given: Any) -> dict[str, Any]:
    given = {"stop": lambda: "", "say": lambda line: None, "tools": tools(Benchmark()), **given}
    return controller.run_arm(
        recipe, plan_of(recipe, arm), folder, first={"skill.txt": b"3"}, **given
    )


if __name__ == "__main__":
    where = Path(sys.argv[1])
    slow = Benchmark(0.01, where.with_suffix(".calls"))
    run(where, tools=tools(slow))
