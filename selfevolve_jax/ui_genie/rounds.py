"""UI-Genie's loop (arXiv 2505.21496, section 3.3): in every round the agent explores under the reward
model's guidance, the reward model learns from steps and outcomes of these episodes and says what
succeeded, and the agent learns from the successes.

    ROUND/instructions.jsonl    where a model says them in other words (`instructions`)
    ROUND/explored/CHUNK    trajectories (trajectory.write), and counts.jsonl
    ROUND/agent, /reward    policy folders
    ROUND/judged.json       what the reward model then says of the ends (`judged_again`)
    ROUND/slips             successes played again with one step wrong (`slips`)
    ROUND/reward_rows.jsonl what the reward model learnt from, /reward_data.json its composition
    ROUND/test, /evaluation.json    `evaluation`, which is written last: the round is over

All is made from (recipe, seed, what the round before left), and each part is written whole before the
next begins, so a killed run goes on from the part that it was in: a chunk of episodes, a checkpoint
of a training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from etils import epath
from jax.sharding import Mesh

from selfevolve_jax import run_dir, sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.ui_genie import (
    agent,
    corruption,
    instructions,
    reward_data,
    reward_model,
    reward_rows,
    shepherd,
    slips,
    trajectory,
)
from selfevolve_jax.ui_genie.contract import COMPLETED
from selfevolve_jax.ui_genie.environment import State
from selfevolve_jax.ui_genie.explore import Exploration, Propose, Score, Screens, choose, explore
from selfevolve_jax.ui_genie.hard_negatives import hard_negatives
from selfevolve_jax.ui_genie.named import deeds, named, settled
from selfevolve_jax.ui_genie.recipe import UIGenieRecipe, page_seeds
from selfevolve_jax.ui_genie.reward_data import By, Judged
from selfevolve_jax.ui_genie.training import check_batch, plan, train_policy
from selfevolve_jax.ui_genie.trajectory import Trajectory, outcome_at

_WRITTEN = 64  # tokens of an instruction that the agent says in other words, at most


@dataclass(frozen=True)
class Setting:
    """What stays the same in a run. screenshots: one folder for all, PNGs by content."""

    recipe: UIGenieRecipe
    mesh: Mesh
    fleet: Screens
    folder: epath.Path
    say: Callable[[str], None]

    @property
    def screenshots(self) -> epath.Path:
        return self.folder / trajectory.SCREENSHOTS


@dataclass(frozen=True)
class Models:
    agent: Policy
    reward: Policy


def proposer(policy: Policy, setting: Setting, temperature: float, seed: int) -> Propose:
    recipe = setting.recipe

    def propose(views, ids, n):
        return agent.propose(
            policy,
            views,
            ids,
            n,
            style=recipe.style,
            sampling=Sampling(temperature=temperature),
            seed=seed,
            mesh=setting.mesh,
            rollout=recipe.rollout,
            max_new_tokens=recipe.max_new_tokens,
        )

    return propose


def scorer(models: Models, setting: Setting) -> Score:
    def score(asked):
        return reward_model.score(models.reward, asked, setting.recipe.style, setting.mesh)

    return score


def episodes(
    name: str,
    starts: Sequence[State],
    models: Models,
    setting: Setting,
    config: Exploration,
    seed: int,
    folder: epath.Path,
    judged: bool = True,
    source: Mapping[str, Any] | None = None,
) -> list[Trajectory]:
    """Explores all starts, a chunk at a time; chunks that are on disk are read. source: goes into the
    trajectories' own."""
    propose = proposer(models.agent, setting, config.drawn_at, seed)
    score = scorer(models, setting) if judged else None
    found: list[Trajectory] = []
    size = setting.recipe.chunk
    for at in range(0, len(starts), size):
        place = folder / f"{at:06d}"
        if not (place / trajectory.TRAJECTORIES).exists():
            made = explore(
                starts[at : at + size],
                setting.fleet,
                propose,
                score,
                config,
                seed,
                name=name,
                source=source,
            )
            # Last the trajectories: a chunk that has them is whole.
            trajectory.write_lines(place / "counts.jsonl", [dict(made.counts)])
            trajectory.write(place, made.trajectories, made.screenshots, setting.folder)
        found += trajectory.read(place)
    return found


def starts_of(
    recipe: UIGenieRecipe, number: int, failed: Sequence[Trajectory], lengths: dict[str, int]
) -> list[State]:
    """The instructions of a round. Of MiniWoB++ an instruction is a task and a page's seed. Rounds 1
    and 2: fresh seeds of every task, or where some were not demonstrated, of every one of those. From
    round 3 on, as in the paper, what failed before and the long ones: as many starts, half of them
    failures, the others fresh seeds of the half of the tasks that take the most steps."""
    tasks = recipe.explored
    seeds = page_seeds(1 + number, recipe.seed, 2 * recipe.starts)
    if number < 3:
        return [State(task, seed) for task in tasks for seed in seeds[: recipe.starts]]
    total = recipe.starts * len(tasks)
    again = list(dict.fromkeys(State(one.task, one.seed) for one in failed))[-(total // 2) :]
    longest = sorted(tasks, key=lambda task: -lengths[task])[: -(-len(tasks) // 2)]
    fresh = [State(task, seed) for seed in seeds for task in longest]
    return again + fresh[: total - len(again)]


def worded(
    name: str,
    number: int,
    starts: Sequence[State],
    policy: Policy,
    before: Learnt,
    demonstrations: Sequence[Trajectory],
    setting: Setting,
    seed: int,
    folder: epath.Path,
) -> Setting:
    """The setting in which a round's starts are told their instructions: made once and kept, with what
    was refused. Starts that failed before are told what they were told then."""
    config = setting.recipe.instructions
    if config.by == "pages" or number < instructions.FIRST_ROUND:
        return setting
    if not (folder / instructions.INSTRUCTIONS).exists():
        by, ask = "agent", _ask_agent(policy, setting, seed)
        if config.by == "endpoint":
            by, ask = config.endpoint.model, instructions.ask_endpoint(config.endpoint)
        earlier = (*demonstrations, *before.won, *before.failed)
        told = instructions.make(
            folder,
            instructions.own(
                *(starts, setting.fleet, number),
                retried={State(one.task, one.seed): one.goal for one in before.failed},
            ),
            *(ask, by, config.share, seed),
            known=[(one.task, one.goal) for one in earlier],
            special=policy.tokenizer.all_special_tokens,
        )
        setting.say(f"{name}, round {number}: {told}")
    goals = {one.state: one.text for one in instructions.read(folder)}
    return replace(setting, fleet=instructions.Worded(setting.fleet, goals))


def _ask_agent(policy: Policy, setting: Setting, seed: int) -> instructions.Ask:
    recipe = setting.recipe

    def ask(questions: Sequence[str]) -> list[str]:
        return agent.write(
            policy,
            questions,
            range(len(questions)),
            sampling=Sampling(temperature=recipe.instructions.temperature),
            seed=seed,
            mesh=setting.mesh,
            rollout=recipe.rollout,
            max_new_tokens=_WRITTEN * instructions.AT_ONCE,
        )

    return ask


def learn_agent(
    policy: Policy, learnt: Sequence[Trajectory], setting: Setting, seed: int, folder: epath.Path
) -> Policy:
    """Agent SFT on every step of these trajectories."""
    config, style = setting.recipe.agent, setting.recipe.style
    check_batch("agent.", config.batch, config.accumulate, setting.mesh)
    if setting.recipe.exploration.named:
        learnt = [replace(one, steps=settled(one.steps)) for one in learnt]
    examples = agent.examples(learnt, setting.screenshots)
    steps = config.steps or agent.sft_steps(len(examples), config.batch, config.epochs or 1)
    pieces = sharding.batch_ways(setting.mesh) * config.accumulate

    def batches(done: int):
        return agent.sft_batches(
            *(policy, examples, style),
            size=config.batch,
            steps=steps,
            seed=seed,
            pieces=pieces,
            start=done,
        )

    made = plan(policy.model, steps, config.optimizer, config.train_vision)
    return train_policy(policy, folder, made, batches, setting.mesh, config.accumulate)


def learn_reward(
    rm: Policy, rows: Sequence[Judged], setting: Setting, seed: int, folder: epath.Path
) -> Policy:
    """Reward-model training on judged rows, each once and both answers as often; rows of one view are
    judged side by side."""
    config, style, mesh = setting.recipe.reward, setting.recipe.style, setting.mesh
    groups = _by_view(reward_data.balanced(reward_data.distinct(rows), seed))
    steps = reward_model.training_steps(len(groups), config)
    images = setting.recipe.exploration.earlier

    def load(group: Sequence[Judged]):
        view = reward_data.view_of(group[0], setting.screenshots, images)
        return view, [(row.action, row.label) for row in group]

    def batches(done: int):
        return reward_model.batches(rm, groups, load, style, config, seed, mesh, done)

    made = plan(rm.model, steps, config.optimizer, config.train_vision)
    return train_policy(rm, folder, made, batches, mesh, config.accumulate)


def _by_view(rows: Iterable[Judged], at_most: int = 8) -> list[list[Judged]]:
    """Rows that share all that is seen, at most so many together."""
    groups: dict[Any, list[Judged]] = {}
    for row in rows:
        seen = replace(row.view, trajectory="", step=0)
        groups.setdefault(seen, []).append(row)
    return [g[i : i + at_most] for g in groups.values() for i in range(0, len(g), at_most)]


def reward_rows_of(
    found: Sequence[Trajectory] | None,
    demonstrations: Sequence[Trajectory],
    models: Models,
    setting: Setting,
    seed: int,
    folder: epath.Path,
) -> tuple[list[Judged], dict[str, Any]]:
    """What a round adds to the reward model's rows, and what was counted on the way. found: the round's
    episodes; None before the first round, when there are demonstrations alone.

    Labels are the reward model's own word on outcomes beside what the samples of a start agree on, and
    what follows from that; the environment's verdict is not read. The ends of real failures are left
    out, so that a hold-out of them is of a kind that training never had.
    """
    data, by_name = setting.recipe.data, setting.recipe.exploration.named
    counts: dict[str, Any] = {}
    if found is None:
        by: By = "environment"
        whole: Sequence[Trajectory] = demonstrations
        rows = reward_data.demonstration_rows(demonstrations)
    else:
        by = "votes"
        won = (one for one in found if reward_data.succeeded(one, by))
        whole = _unlike(won, by_name)
        some = [one for one in found if reward_data.succeeded(one, by) is False][: data.failures]
        labelled = shepherd.label_steps(
            [*whole, *some], by, _continue_from(models, setting), seed, data.continuations
        )
        counts["shepherd"] = labelled.counts | {"rescued": labelled.rescued}
        rows = [*labelled.rows]
        # The first reward model learns from what the paper's did. Slips of the demonstrations would
        # help it over all tasks, not within one (docs/ui_genie.md).
        if data.slips:
            slipped, shots, counts["slips"] = slips.slip(
                *(whole, by, setting.fleet, data.slips, seed, by_name)
            )
            trajectory.write(folder / "slips", slipped, shots, setting.folder)
            rows += corruption.corruption_rows(slipped)
    # An agent errs on pages that it did not learn from: there its own actions tell more.
    ruled, counts["rule"] = reward_data.rule_verified(
        whole, by, proposals(models.agent, setting, seed)
    )
    mined, counts["mined"] = hard_negatives(
        *(whole, by, _scores(models, setting), data.proposals, seed, by_name)
    )
    # A demonstration's success is the demonstrator's word, which the script's own check with the page
    # has confirmed.
    ends = [r for r in reward_data.outcome_rows(whole, by) if r.label]
    count = round(len(whole) * data.corrupted)
    made = corruption.corrupt(whole, by, data.proportions, count, seed)
    counts["corrupted"] = made.reached
    return [*rows, *ruled, *mined, *ends, *corruption.corruption_rows(made.trajectories)], counts


def named_rows(rows: Sequence[Judged], setting: Setting) -> list[Judged]:
    """The rows, their candidates worded as an episode's steps are."""
    if not setting.recipe.exploration.named:
        return [*rows]
    return [replace(row, action=named(row.action, row.view.elements)) for row in rows]


def _unlike(found: Iterable[Trajectory], by_name: bool) -> list[Trajectory]:
    """Of episodes of one start that did the same, the first: samples that agree say nothing twice."""
    unlike: dict[Any, Trajectory] = {}
    for one in found:
        unlike.setdefault((one.task, one.seed, deeds(one.steps, by_name)), one)
    return list(unlike.values())


def proposals(policy: Policy, setting: Setting, seed: int):
    propose = proposer(policy, setting, setting.recipe.exploration.temperature, seed)

    def texts(asked):
        views = [trajectory.view_at(one, i, setting.screenshots, 0) for one, i in asked]
        return propose(views, range(len(views)), setting.recipe.data.proposals)

    return texts


def _scores(models: Models, setting: Setting):
    score, images = scorer(models, setting), setting.recipe.exploration.earlier

    def scores(asked):
        views = [trajectory.view_at(one, i, setting.screenshots, images) for one, i, _ in asked]
        return score([(v, actions) for v, (_, _, actions) in zip(views, asked, strict=True)])

    return scores


def _continue_from(models: Models, setting: Setting):
    """Continuations by the agent, their outcomes by the reward model. An episode has its most steps in
    all, so after the last step of one that was cut off there is nothing, and no success."""

    def continued(states, n, seed):
        config = replace(setting.recipe.exploration, mode="sample", candidates=n)
        propose = proposer(models.agent, setting, config.temperature, seed)
        made = explore(states, setting.fleet, propose, scorer(models, setting), config, seed)
        wins: dict[State, list[bool]] = {state: [] for state in states}
        for one in made.trajectories:
            start = trajectory.state_at(one, one.source["given"])
            wins[start].append(bool(reward_data.succeeded(one, "judge")))
        # A start whose screen broke, or whose page was over already, has none.
        return [(wins[state] + [False] * n)[:n] for state in states]

    return continued


@dataclass(frozen=True)
class Learnt:
    """What an arm has gathered so far: episodes taken for successes and for failures, judged rows."""

    won: Sequence[Trajectory]
    failed: Sequence[Trajectory]
    rows: Sequence[Judged]


def one_round(
    number: int,
    arm: str,
    models: Models,
    first: Policy,
    before: Learnt,
    demonstrations: Sequence[Trajectory],
    setting: Setting,
    folder: epath.Path,
) -> tuple[Models, Learnt]:
    """One round of an arm: the models after it, and what it has gathered by then. first: round 0's
    agent, from which agent.from_first trains again."""
    recipe = setting.recipe
    seed = recipe.seed * 1000 + number
    lengths = dict.fromkeys(recipe.tasks, 0)  # as far as is known: of a new task, by what was won
    for one in (*demonstrations, *before.won):
        lengths[one.task] = max(lengths[one.task], len(one.steps))
    config = recipe.exploration
    if arm == "no_reward":
        config = replace(config, mode="sample", candidates=1)
    starts = starts_of(recipe, number, before.failed, lengths)
    setting = worded(
        *(arm, number, starts, models.agent, before, demonstrations, setting, seed, folder)
    )
    found = episodes(
        f"round-{number}",
        starts,
        models,
        setting,
        config,
        seed,
        folder / "explored",
        arm != "no_reward",
        {"arm": arm, "round": number},
    )
    rows = before.rows
    if arm == "co_evolution":
        rows = [*rows, *kept_rows(found, demonstrations, models, setting, seed, folder)]
        reward = learn_reward(models.reward, rows, setting, seed, folder / "reward")
        models = Models(models.agent, reward)
        found = judged_again(found, models, setting, folder)
    chosen = [one for one in found if one.source["chosen"]]
    if arm == "no_reward":  # the success filter is off
        new = [one for one in chosen if one.source["ended"] != "broken"]
    else:
        new = [one for one in chosen if reward_data.succeeded(one, "judge")]
    lost = [one for one in chosen if not reward_data.succeeded(one, "judge")]
    setting.say(
        f"{arm}, round {number}: {len(new)} of {len(starts)} episodes taken for successes"
        f"{_truly(new)}"
    )
    now = Learnt([*before.won, *new], [*before.failed, *lost], rows)
    learnt = [*(demonstrations if recipe.agent.replay else ()), *now.won]
    start = first if recipe.agent.from_first else models.agent
    trained = learn_agent(start, learnt, setting, seed, folder / "agent")
    return replace(models, agent=trained), now


def judged_again(
    found: Sequence[Trajectory], models: Models, setting: Setting, folder: epath.Path
) -> list[Trajectory]:
    """A round's episodes by the word of the reward model that has just learnt from them: what they
    agree on has made it surer of the others. judged.json: each id's score."""
    path = folder / "judged.json"
    if not path.exists():
        ends = [one for one in found if one.outcome_score is not None]
        given = _scores(models, setting)([(one, outcome_at(one), [COMPLETED]) for one in ends])
        scores = {one.id: value for one, (value,) in zip(ends, given, strict=True)}
        run_dir.write_json_atomic(path, scores)
    scores = json.loads(path.read_text())
    of_starts: dict[State, list[Trajectory]] = {}
    for one in found:
        start = trajectory.state_at(one, one.source["given"])
        again = replace(one, outcome_score=scores.get(one.id))
        of_starts.setdefault(start, []).append(again)
    return [one for of_start in of_starts.values() for one in choose(of_start)]


def _truly(found: Sequence[Trajectory]) -> str:
    known = [one.success for one in found if one.success is not None]
    return f", of which the pages call {sum(known)} so" if known else ""


def kept_rows(
    found: Sequence[Trajectory] | None,
    demonstrations: Sequence[Trajectory],
    models: Models,
    setting: Setting,
    seed: int,
    folder: epath.Path,
) -> list[Judged]:
    """`reward_rows_of`, made once and kept with its composition."""
    path = folder / "reward_rows.jsonl"
    if not path.exists():
        rows, counts = reward_rows_of(found, demonstrations, models, setting, seed, folder)
        rows = named_rows(rows, setting)
        parts = [asdict(part) for part in reward_rows.composition(rows)]
        told = {"composition": parts, "counts": counts}
        with run_dir.disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        run_dir.write_json_atomic(folder / "reward_data.json", told)
        reward_rows.write(path, rows)
    return reward_rows.read(path)
