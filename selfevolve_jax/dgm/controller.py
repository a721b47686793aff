"""One arm of a DGM run (arXiv 2505.22954, §3): from one agent an archive grows. A parent is drawn, its
own code makes a child, the child is judged on tasks in a sandbox and joins; nothing is thrown away.

    ARM/events.jsonl     what happened (events.py): the only truth
    ARM/agents.git       every agent's files (trees.py)
    ARM/agents/ID        raw.txt, log.txt of how it was made
    ARM/evaluations/ID/TASK.SEED     answer.txt, log.txt of an attempt

Ways of selection that work by generations give the same archive whatever the order in which jobs end,
and so does a run that is killed and resumed. HGM's way decides anew whenever a worker is free, so with
several workers it does not.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selfevolve_jax import run_dir
from selfevolve_jax.dgm import archive, events, selection, staged, trees, work
from selfevolve_jax.dgm.archive import Evaluation, Node
from selfevolve_jax.dgm.contract import Parent, Proposal, Result, Task, Tree, draws, seed_of
from selfevolve_jax.dgm.recipe import DGMRecipe, Plan
from selfevolve_jax.dgm.selection import Scored
from selfevolve_jax.dgm.tools import Tools
from selfevolve_jax.dgm.work import Evaluate, Expand, Job

TEXT_BYTES = 1 << 20  # kept of each text


@dataclass
class Arm:
    """One arm, at work. nodes: the log, folded so far. scores: by agent and number of attempts, since
    all agents are asked for theirs twice a generation."""

    recipe: DGMRecipe
    plan: Plan
    folder: Path
    tools: Tools
    first: Tree
    stop: Callable[[], str]
    say: Callable[[str], None]
    log: events.Log = field(init=False)
    repository: Path = field(init=False)
    nodes: dict[int, Node] = field(init=False)
    tasks: dict[str, Task] = field(init=False)
    parts: list[list[staged.Job]] = field(init=False)
    scores: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = events.Log(self.folder / events.NAME)
        if self.log.torn:
            self.say(f"{events.NAME}: a torn last line of {self.log.torn} bytes was cut off")
        self.repository = trees.create(self.folder / trees.NAME)
        self.nodes = archive.fold(self.log.events)
        self.tasks = {task.id: task for task in self.tools.benchmark.tasks}
        train = [task.id for task in self.tasks.values() if task.split == "train"]
        self.parts = staged.stages(train, self.recipe.stages, self.recipe.seed)

    def append(self, event: str, **fields: Any) -> None:
        archive.add(self.nodes, self.log.append(event, **fields))


def run_arm(
    recipe: DGMRecipe,
    plan: Plan,
    folder: Path,
    tools: Tools,
    first: Tree,
    stop: Callable[[], str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Grows the archive, measures the first and the best agent on what selection never saw, and returns
    the arm's entry of summary.json. stop: says why to stop now, "" if nothing does; or raises Stopped.
    Raises work.Stopped."""
    arm = Arm(recipe, plan, folder, tools, first, stop, say)
    try:
        arm.append("run", seed=recipe.seed, excluded=dict(tools.benchmark.excluded))
        try:
            if 0 not in arm.nodes:
                commit = trees.put(arm.repository, 0, first, None)
                proposal = Proposal(first, "", entry="the first agent")
                _append_child(arm, Expand(0, -1, 0, 0), proposal, commit, 0.0)
            _search(arm)
            best = best_agent(arm)
            _measure(arm, [0, best])
        except work.Stopped as stopped:
            arm.append("stopped", reason=str(stopped))
            raise
        arm.append("stopped", reason="the end")
    finally:
        arm.log.close()
    figures = {name: _final(arm, agent) for name, agent in (("before", 0), ("after", best))}
    return {**figures, "best": best, "agents": len(arm.nodes)}


def _stop(arm: Arm) -> str:
    """Models keep to the budget by themselves, call by call; those on other machines, by Ray, know of
    their own calls alone, so here it is the archive's own sum."""
    if (reason := arm.stop()) or arm.recipe.fan_out == "threads":
        return reason
    spent, budget = archive.usage(arm.nodes), arm.recipe.models.budget
    if budget.dollars is not None and spent.dollars >= budget.dollars:
        return f"the models' budget of {budget.dollars:g} dollars is spent ({spent.dollars:.4f})"
    tokens = spent.tokens_in + spent.tokens_out
    if budget.tokens is not None and tokens >= budget.tokens:
        return f"the models' budget of {budget.tokens} tokens is spent ({tokens})"
    return ""


def _search(arm: Arm) -> None:
    _work(arm, functools.partial(_next_evaluation, arm, [0]))
    if arm.plan.selection.way == "hgm":
        _work(arm, functools.partial(_next_hgm, arm), ahead=0)
        return
    for generation in range(1, arm.recipe.generations + 1):
        began = len(arm.nodes)
        parents = _parents(arm, generation)
        ids = [1 + (generation - 1) * arm.recipe.children + i for i in range(len(parents))]
        wanted = [
            Expand(agent, parent, generation, slot)
            for slot, (agent, parent) in enumerate(zip(ids, parents, strict=True))
        ]
        _work(arm, functools.partial(_next_of_generation, arm, wanted))
        if len(arm.nodes) > began:
            arm.say(_told(arm, generation, ids))


def _parents(arm: Arm, generation: int) -> list[int]:
    """Drawn once: a generation that was begun keeps its parents."""
    for event in arm.log.events:
        if event["event"] == "selected" and event["generation"] == generation:
            return event["parents"]
    rng = draws(arm.recipe.seed, "parents", generation)
    drawn = selection.parents(scored(arm), arm.recipe.children, arm.plan.selection, rng)
    arm.append("selected", generation=generation, parents=drawn)
    return drawn


def _next_of_generation(arm: Arm, wanted: Sequence[Expand], flying: Collection[Job]) -> Job | None:
    for job in wanted:
        if job.agent not in arm.nodes and job not in flying:
            return job
    return _next_evaluation(arm, [job.agent for job in wanted if job.agent in arm.nodes], flying)


def _next_evaluation(arm: Arm, agents: Sequence[int], flying: Collection[Job]) -> Job | None:
    for agent in agents:
        for task, seed in _missing(arm, agent):
            if (job := Evaluate(agent, task, seed)) not in flying:
                return job
    return None


def _missing(arm: Arm, agent: int) -> list[staged.Job]:
    node = arm.nodes[agent]
    if node.tree is None:
        return []
    return staged.wanted(arm.parts, node.on("train"), _earlier(arm, node), arm.recipe.stages)


def _earlier(arm: Arm, node: Node) -> list[Sequence[Evaluation]]:
    """Of the agents of earlier generations: those of its own may still be at work, and what a stage
    asks for must not depend on who is faster. Nobody is compared before the third stage."""
    if len(arm.parts) < 3:
        return []
    nodes = (n for n in arm.nodes.values() if n.generation < node.generation)
    return [done for n in nodes if (done := n.on("train"))]


def _next_hgm(arm: Arm, flying: Collection[Job]) -> Job | None:
    """HGM's choice; what is in flight counts as begun."""
    recipe, seen = arm.recipe, scored(arm)
    running = {job for job in flying if isinstance(job, Evaluate)}
    making = [job.agent for job in flying if isinstance(job, Expand)]
    begun = sum(one.attempted for one in seen) + len(running)
    left = {one.id: [j for j in _untried(arm, one.id) if j not in running] for one in seen}
    made = len(arm.nodes) + len(making)
    step = selection.next_hgm(
        seen,
        begun,
        recipe.evaluations,
        arm.plan.selection,
        draws(recipe.seed, "hgm", made, begun),
        expanding=len(making),
        open_agents=[agent for agent, jobs in left.items() if jobs],
    )
    if step is None or (step[0] == "expand" and made > recipe.generations * recipe.children):
        return None
    if step[0] == "evaluate":
        return left[step[1]][0]
    new = 1 + max((*arm.nodes, *making))
    return Expand(new, step[1], new, 0)


def _untried(arm: Arm, agent: int) -> list[Evaluate]:
    done = {(e.task, e.seed) for e in arm.nodes[agent].on("train")}
    return [Evaluate(agent, *job) for part in arm.parts for job in part if job not in done]


def scored(arm: Arm) -> list[Scored]:
    """What selection sees: the first agent, and every valid one that the gate keeps; HGM sees all that
    have a tree."""
    kept = [n for n in arm.nodes.values() if n.tree is not None and _joins(arm, n)]
    return selection.scored(kept, {node.id: _score(arm, node) for node in kept})


def _joins(arm: Arm, node: Node) -> bool:
    if node.id == 0 or arm.plan.selection.way == "hgm":
        return True
    done, stages = node.on("train"), arm.recipe.stages
    verdict, _ = staged.judged(arm.parts, done, _earlier(arm, node), stages)
    return verdict == "valid" and staged.keeps(
        _score(arm, node), _score(arm, arm.nodes[0]), arm.recipe.gate
    )


def _score(arm: Arm, node: Node) -> float:
    done = node.on("train")
    if not done:
        return 0.0
    key = (node.id, len(done))
    if key not in arm.scores:
        arm.scores[key] = staged.score(done, arm.recipe.stages.by)
    return arm.scores[key]


def best_agent(arm: Arm) -> int:
    """By the train tasks alone: the highest score among the agents that came to the deepest stage; the
    older of two alike. HGM's by its posterior's quantile."""
    seen = scored(arm)
    if arm.plan.selection.way == "hgm":
        return selection.most_believed(seen, arm.plan.selection)
    deepest = max(one.attempted for one in seen)
    return max(
        (one for one in seen if one.attempted == deepest), key=lambda one: (one.score, -one.id)
    ).id


def _measure(arm: Arm, agents: Sequence[int]) -> None:
    """On held-out and transfer tasks, with seeds that the search never used."""
    splits = ("held_out", "transfer")
    keys = [
        (task.id, seed_of(arm.recipe.seed, "final", repeat))
        for repeat in range(arm.recipe.final_repeats)
        for task in arm.tasks.values()
        if task.split in splits
    ]

    def next_job(flying: Collection[Job]) -> Job | None:
        for agent in dict.fromkeys(agents):
            done = {(e.task, e.seed) for e in arm.nodes[agent].evaluations}
            for key in keys:
                if key not in done and (job := Evaluate(agent, *key)) not in flying:
                    return job
        return None

    _work(arm, next_job)


def _final(arm: Arm, agent: int) -> dict[str, float]:
    node = arm.nodes[agent]
    found: Mapping[str, Sequence[Evaluation]] = {s: node.on(s) for s in ("held_out", "transfer")}
    return {split: staged.score(done, "solved") for split, done in found.items() if done}


def _work(arm: Arm, next_job: work.Next, ahead: int | None = None) -> None:
    workers = arm.recipe.workers
    work.run_all(
        next_job,
        functools.partial(_start, arm),
        functools.partial(_record, arm),
        functools.partial(_failed, arm),
        functools.partial(_stop, arm),
        workers,
        workers if ahead is None else ahead,
    )


def _start(arm: Arm, pool: Executor, job: Job) -> Future[Any]:
    keep = functools.partial(_keep, arm, job)
    if isinstance(job, Evaluate):
        tree, task = _tree(arm, job.agent), arm.tasks[job.task]
        return arm.tools.submit(pool, keep, evaluate, tree, task, job.seed)
    # In the order of the stages, whichever ended first.
    tried = {(e.task, e.seed): e for e in arm.nodes[job.parent].on("train")}
    ordered = [tried[key] for part in arm.parts for key in part if key in tried]
    parent = Parent(
        id=job.parent,
        tree=_tree(arm, job.parent),
        maker=_tree(arm, job.parent) if arm.plan.maker == "parent" else arm.first,
        attempts=[(arm.tasks[e.task], _with_texts(arm, e)) for e in ordered],
    )
    seed = seed_of(arm.recipe.seed, "child", job.agent)
    return arm.tools.submit(pool, keep, expand, parent, seed)


def evaluate(tools: Tools, tree: Tree, task: Task, seed: int) -> Result:
    return tools.benchmark.evaluate(tree, task, seed, tools.box, tools.models)


def expand(tools: Tools, parent: Parent, seed: int) -> tuple[Proposal, float]:
    """(the proposal, seconds)"""
    began = time.monotonic()
    made = tools.proposer.propose(parent, seed, tools.box, tools.models)
    return made, time.monotonic() - began


def _record(arm: Arm, job: Job, result: Any) -> None:
    if isinstance(job, Expand):
        proposal, seconds = result
        commit = None
        if proposal.tree is not None:
            if why := trees.refusal(proposal.tree):
                proposal = replace(proposal, tree=None, reason=f"its tree is refused: {why}")
            else:
                before = arm.nodes[job.parent].tree
                commit = trees.put(arm.repository, job.agent, proposal.tree, before)
        _append_child(arm, job, proposal, commit, seconds)
        return
    assert isinstance(result, Result)
    task = arm.tasks[job.task]
    arm.append(
        "evaluated",
        agent=job.agent,
        task=task.id,
        seed=job.seed,
        split=task.split,
        group=task.group,
        files=_files(job),
        **{
            name: getattr(result, name)
            for name in ("solved", "partial", "empty", "reason", "tests", "usage")
        },
        cpu_s=round(result.cpu_s, 4),
        wall_s=round(result.wall_s, 4),
    )


def _files(job: Job) -> str:
    if isinstance(job, Expand):
        return f"agents/{job.agent}"
    return f"evaluations/{job.agent}/{job.task}.{job.seed}"


def _keep(arm: Arm, job: Job, result: Any) -> None:
    """Writes the texts where the result comes to, so that nobody else waits for the disk; the event
    that names them follows. What a run that dies in between leaves is overwritten."""
    if isinstance(job, Expand):
        texts = {"raw.txt": result[0].raw, "log.txt": result[0].log}
    else:
        texts = {"answer.txt": result.answer, "log.txt": result.log}
    _write(arm, _files(job), texts)


def _append_child(
    arm: Arm, job: Expand, made: Proposal, commit: str | None, seconds: float
) -> None:
    arm.append(
        "child",
        agent=job.agent,
        parent=job.parent if job.agent else None,
        generation=job.generation,
        slot=job.slot,
        tree=commit,
        reason=made.reason,
        entry=made.entry,
        diagnosis=made.diagnosis,
        flags=made.flags,
        usage=made.usage,
        seconds=round(seconds, 3),
        files=_files(job) if made.raw or made.log else "",
    )


def _failed(arm: Arm, job: Job, reason: str) -> None:
    what = "child" if isinstance(job, Expand) else "evaluation"
    task = job.task if isinstance(job, Evaluate) else None
    arm.append("unavailable", what=what, agent=job.agent, task=task, reason=reason)
    arm.say(f"{what} of agent {job.agent} will be tried again: {reason}")


def _tree(arm: Arm, agent: int) -> Tree:
    commit = arm.nodes[agent].tree
    assert commit is not None
    return _read_tree(arm.repository, commit)


@functools.lru_cache(maxsize=64)
def _read_tree(repository: Path, commit: str) -> Tree:
    return trees.get(repository, commit)


def _with_texts(arm: Arm, e: Evaluation) -> Result:
    def text(name: str) -> str:
        try:
            return (arm.folder / e.files / name).read_text(errors="replace")
        except FileNotFoundError:  # an empty text has no file
            return ""

    same = ("solved", "partial", "empty", "reason", "tests", "usage", "cpu_s", "wall_s")
    return Result(
        answer=text("answer.txt"), log=text("log.txt"), **{name: getattr(e, name) for name in same}
    )


def _write(arm: Arm, files: str, texts: Mapping[str, str]) -> None:
    """Before the event that names them; a text that is empty is no file."""
    kept = {
        name: text.encode(errors="replace")[:TEXT_BYTES] for name, text in texts.items() if text
    }
    if not kept:
        return
    folder = run_dir.absolute(arm.folder / files)
    with run_dir.disk_errors(folder):
        os.makedirs(folder, exist_ok=True)
    run_dir.write_files_atomic(folder, kept)


def _told(arm: Arm, generation: int, ids: Sequence[int]) -> str:
    parts = []
    for agent in ids:
        node = arm.nodes[agent]
        own = node.on("train")
        figure = f"{_score(arm, node):.3f}" if own else (node.reason or "none")
        parts.append(f"{agent} from {node.parent}: {figure}")
    best = max((one.score for one in scored(arm)), default=0.0)
    return f"generation {generation}: {'; '.join(parts)} (best so far {best:.3f})"
