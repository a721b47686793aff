"""Who becomes a parent: DGM's rule and its baselines, and HGM's Thompson sampling over clades.

DGM: arXiv 2505.22954, appendix on parent selection. HGM: arXiv 2510.21614, section 3.2. ShinkaEvolve:
SakanaAI/ShinkaEvolve, weighted parent sampling. All are functions of what the archive says and of a
stream of random numbers; the order in which agents are given changes nothing.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from selfevolve_jax.dgm.archive import Node
from selfevolve_jax.errors import UserError

Way = Literal["dgm", "dgm_scaled", "score", "random", "best", "last", "hgm"]


@dataclass(frozen=True)
class Scored:
    """What selection sees of a valid archived agent. score: in [0, 1], on train. children: archived
    ones. solved of attempted: single evaluations on train, repeats among them (HGM's counts)."""

    id: int
    parent: int | None
    score: float
    children: int
    solved: int
    attempted: int


@dataclass(frozen=True)
class SelectionConfig:
    """way:
    dgm         weight sigmoid(sharpness · (score − midpoint)) / (1 + children)
    dgm_scaled  the same with the archive's own middle and spread: see `probabilities`
    score       sigmoid(sharpness · (score − midpoint)), whatever the number of children
    random      all alike
    best        the highest score; equals are all alike
    last        the newest agent: "without open-endedness"
    hgm         `next_hgm`

    sharpness, midpoint: λ and α0 of the paper. growth: HGM's α; the archive may hold N^α agents after N
    evaluations. quantile: of the posterior by which HGM's final agent is the best (the paper's first
    percentile).
    """

    way: Way = "dgm"
    sharpness: float = 10.0
    midpoint: float = 0.5
    growth: float = 0.6
    quantile: float = 0.01

    def __post_init__(self) -> None:
        if self.way not in get_args(Way):
            raise UserError(f"way={self.way!r} is not one of {', '.join(get_args(Way))}.")
        if not 0 <= self.sharpness < math.inf:
            raise UserError(f"sharpness={self.sharpness} must be 0 or more, and finite.")
        if not 0 <= self.midpoint <= 1:
            raise UserError(f"midpoint={self.midpoint} is a score: give one between 0 and 1.")
        if not 0 < self.growth <= 1:
            raise UserError(f"growth={self.growth} must be above 0 and at most 1.")
        if not 0 < self.quantile < 1:
            raise UserError(f"quantile={self.quantile} must lie between 0 and 1, such as 0.01.")


def scored(archived: Sequence[Node], scores: Mapping[int, float]) -> list[Scored]:
    """The archive as selection sees it. scores: by id, of those that have one; whom nobody has
    evaluated yet (HGM) counts as 0. Children are counted among the archived alone; Node.children counts
    all that have a tree."""
    families = Counter(node.parent for node in archived)
    told = []
    for node in archived:
        tried = node.on("train")
        told.append(
            Scored(
                id=node.id,
                parent=node.parent,
                score=scores.get(node.id, 0.0),
                children=families[node.id],
                solved=sum(e.solved for e in tried),
                attempted=len(tried),
            )
        )
    return told


def parents(
    agents: Sequence[Scored], k: int, config: SelectionConfig, rng: random.Random
) -> list[int]:
    """Ids of k parents, drawn with replacement by `probabilities`."""
    chances = probabilities(agents, config)
    return rng.choices(list(chances), list(chances.values()), k=k)


def probabilities(agents: Sequence[Scored], config: SelectionConfig) -> dict[int, float]:
    """Each agent's chance of being the next parent, by id. They sum to 1.

    An agent at score 1 leaves nothing to set out from: it has chance 0, unless all are there or the way
    is "last".

    "dgm_scaled": weight sigmoid(sharpness · (score − m) / s) / (1 + children); m is the median score of
    the agents below 1 and s the median of |score − m| (MAD). Where that is 0, because more than half
    share one score, s is the mean of |score − m| (ShinkaEvolve takes 1e-6, so that whoever is below m
    is never drawn again); where that is 0 too all scores are alike, and so are the sigmoids.

    Raises:
        ValueError: no agent, one twice, or way "hgm", whose chances depend on the budget (next_hgm).
    """
    agents = _by_id(agents)
    if config.way == "hgm":
        raise ValueError("HGM draws by next_hgm")
    weights = _weights(agents, config)
    total = math.fsum(weights.values())
    return {agent.id: weights.get(agent.id, 0.0) / total for agent in agents}


def _weights(agents: Sequence[Scored], config: SelectionConfig) -> dict[int, float]:
    if config.way == "last":
        return {agents[-1].id: 1.0}
    able = [agent for agent in agents if agent.score < 1] or agents
    if config.way == "random":
        return {agent.id: 1.0 for agent in able}
    if config.way == "best":
        top = max(agent.score for agent in able)
        return {agent.id: 1.0 for agent in able if agent.score == top}
    middle, spread = config.midpoint, 1.0
    if config.way == "dgm_scaled":
        middle, spread = _middle_and_spread([agent.score for agent in able])
    logs = {a.id: _log_sigmoid(config.sharpness * (a.score - middle) / spread) for a in able}
    highest = max(logs.values())  # so that not all underflow, however sharp
    sigmoids = {id: math.exp(log - highest) for id, log in logs.items()}
    if config.way == "score":
        return sigmoids
    return {agent.id: sigmoids[agent.id] / (1 + agent.children) for agent in able}


def _middle_and_spread(scores: Sequence[float]) -> tuple[float, float]:
    middle = statistics.median(scores)
    away = [abs(score - middle) for score in scores]
    return middle, statistics.median(away) or statistics.fmean(away) or 1.0


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def clades(agents: Sequence[Scored]) -> dict[int, tuple[int, int]]:
    """(successes, failures) pooled over each agent and all of its descendants, by id. A parent that is
    not among the agents is none. ValueError where somebody descends from himself.

    Counted afresh from the agents' own counts at every call.
    """
    agents = _by_id(agents)
    solved = {agent.id: agent.solved for agent in agents}
    failed = {agent.id: agent.attempted - agent.solved for agent in agents}
    parent = {agent.id: agent.parent for agent in agents}
    waiting = dict.fromkeys(parent, 0)  # children that are not yet added
    for above in parent.values():
        if above in waiting:
            waiting[above] += 1
    ready = [id for id, n in waiting.items() if not n]
    for id in ready:  # grows: from the leaves up, without recursion
        above = parent[id]
        if above is not None and above in waiting:
            solved[above] += solved[id]
            failed[above] += failed[id]
            waiting[above] -= 1
            if not waiting[above]:
                ready.append(above)
    if len(ready) < len(agents):
        raise ValueError("an agent is its own ancestor")
    return {id: (solved[id], failed[id]) for id in parent}


Step = tuple[Literal["expand", "evaluate"], int]


def next_hgm(
    agents: Sequence[Scored],
    evaluations: int,
    budget: int,
    config: SelectionConfig,
    rng: random.Random,
    *,
    expanding: int = 0,
    open_agents: Collection[int] | None = None,
) -> Step | None:
    """What an idle worker does next: ("expand", parent's id), ("evaluate", the id of whom to try on one
    more task), or None where there is nothing to do: the budget is spent, or every agent has been tried
    on every task and a child is on its way.

    It expands where N^growth ≥ agents (UCB-AIR), with N = evaluations and `expanding` among the agents;
    and where no agent has a task left. The parent has the highest of draws from Beta(τ(1 + clade's
    successes), τ(1 + clade's failures)); whom to evaluate has the highest of draws from Beta(τ(1 + own
    successes), τ(1 + own failures)). τ = B/b, with B the budget and b = B − N what remains of it: draws
    close in on the posterior means towards the end. An agent that was never evaluated counts as one
    that solves half: where all others solve less, it is drawn first. (The released code expands no
    agent without a success, and leaves τ at 1 by default.)

    Args:
        agents: the tree, agents that nobody has evaluated yet among them; failed children are not.
        evaluations: N, single tasks on one agent each, ended or running.
        budget: B, all evaluations of the run. The expansions that fail are bounded by the caller alone.
        expanding: children that are being made at this moment.
        open_agents: ids of those with a task left; by default all.
    """
    agents = _by_id(agents)
    left = budget - evaluations
    if left <= 0:
        return None
    tau = budget / left
    if open_agents is not None:
        candidates = [agent for agent in agents if agent.id in open_agents]
    else:
        candidates = agents
    grows = evaluations**config.growth >= len(agents) + expanding
    if not grows and candidates:
        own = {a.id: (a.solved, a.attempted - a.solved) for a in candidates}
        return "evaluate", _thompson(own, tau, rng)
    if not grows and expanding:
        return None
    return "expand", _thompson(clades(agents), tau, rng)


def _thompson(counts: Mapping[int, tuple[int, int]], tau: float, rng: random.Random) -> int:
    draws = {
        id: rng.betavariate(tau * (1 + solved), tau * (1 + failed))
        for id, (solved, failed) in counts.items()
    }
    return max(draws, key=lambda id: draws[id])


def most_believed(agents: Sequence[Scored], config: SelectionConfig) -> int:
    """HGM's final agent: whose posterior of its own rate, Beta(1 + solved, 1 + failed), has the highest
    `quantile`; of equals the oldest. It prefers 20 of 25 to 3 of 3."""
    from scipy.special import betaincinv  # a third of a second to import

    agents = _by_id(agents)
    solved = [1 + agent.solved for agent in agents]
    failed = [1 + agent.attempted - agent.solved for agent in agents]
    beliefs = betaincinv(solved, failed, config.quantile).tolist()
    return agents[beliefs.index(max(beliefs))].id


def _by_id(agents: Sequence[Scored]) -> list[Scored]:
    ordered = sorted(agents, key=lambda agent: agent.id)
    if not ordered:
        raise ValueError("no agent to select from")
    if any(a.id == b.id for a, b in itertools.pairwise(ordered)):
        raise ValueError("an agent is there twice")
    return ordered
