"""Exploration: how an agent's episodes are found, by reward-guided beam search, best-of-n, plain
sampling or greedily (UI-Genie, arXiv 2505.21496: 10 candidates a step, ranked by the cumulative reward
along the partial path, 5 kept).

Plain callables do the work: `propose` writes texts for views, `score` is the reward model, and a fleet
of screens is a pure function of states. Every depth of the search is three calls whatever the number of
tasks: one to propose for all live paths, one that scores all of their candidates, one that advances
all screens. A last call to `score` judges the outcomes of all episodes.

How paths compete. Paths still under way are equally long, so their cumulative reward and its mean per
step rank them alike. A path that is over is shorter. By its sum it would lose to any that is still
going on, as scores are never negative; so the beam goes by the mean per step, and a path that is over
holds its place for as long as its mean is among the best. It leaves the search when better ones push
it out, or the search ends when nothing else is left in the beam. Pushed out or not, every path that
came to an end is judged by its outcome: the chosen one has the highest score for `terminate(success)`
on its last screen, then the highest mean, then comes first. The others are returned too, as the reward
model learns from them; in best_of_n each with the share of its start's samples that did the same.

What a chunk of starts gives depends on these starts, the seed and the weights alone: a path is known
to `propose` by a number made of the seed, its start and its place among the candidates, never by its
place in a batch. (What a batch of another size may change is the rounding of a score or a
log-probability, and so which of two nearly equal candidates goes on.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie.actions import Action, Failure, as_record, parse, render
from selfevolve_jax.ui_genie.contract import COMPLETED, View
from selfevolve_jax.ui_genie.environment import Broken, Observation, State, won
from selfevolve_jax.ui_genie.named import deeds, named
from selfevolve_jax.ui_genie.reward_data import AGREEMENT, unworded
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory, keep, outcome_at

Mode = Literal["beam", "best_of_n", "sample", "greedy"]
# (views, an id of each, texts for each) -> texts. The texts of a view depend on the view and its id.
Propose = Callable[[Sequence[View], Sequence[int], int], Sequence[Sequence[str]]]
# (view, candidate actions) pairs -> P(positive) of each candidate, 0 to 1
Score = Callable[[Sequence[tuple[View, Sequence[Action]]]], Sequence[Sequence[float]]]
# Why a path came to an end. Only the first three are judged by their outcome.
Ended = Literal["done", "terminate", "max_steps", "unparsable", "broken"]
_JUDGED = ("done", "terminate", "max_steps")


class Screens(Protocol):
    """What is asked of environment.Fleet."""

    def observe(self, states: Sequence[State]) -> Sequence[Observation | Broken]: ...


@dataclass(frozen=True)
class Exploration:
    """candidates: beam: texts that each live path proposes at each step. best_of_n, sample: whole
    trajectories of each start. greedy: not read.
    keep: width of the beam. max_steps: actions of a trajectory, given ones included.
    temperature: of the agent's samples; greedy goes by 0 (`drawn_at`).
    named: the words of a step say what it hit, by the screen's list of elements (named.named), not
      what the agent called it.
    earlier: screenshots before the current one in a view (contract.View).
    """

    mode: Mode = "beam"
    candidates: int = 10
    keep: int = 5
    max_steps: int = 10
    temperature: float = 1.0
    named: bool = False
    earlier: int = 1

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(
                f"exploration.mode={self.mode!r} is unknown; fix: one of {', '.join(get_args(Mode))}"
            )
        for name, least in (("candidates", 1), ("keep", 1), ("max_steps", 1), ("earlier", 0)):
            if getattr(self, name) < least:
                raise UserError(f"exploration.{name}={getattr(self, name)}; fix: at least {least}")
        if self.mode != "greedy" and not self.temperature > 0:
            raise UserError(
                f"exploration.temperature={self.temperature} with mode {self.mode}: every sample "
                "would be the same text; fix: a temperature above 0, or mode greedy"
            )

    @property
    def drawn_at(self) -> float:
        """The temperature that `propose` is to sample at."""
        return 0.0 if self.mode == "greedy" else self.temperature


@dataclass(frozen=True)
class Explored:
    """What came of it.

    trajectories: in the order of the starts; of each first those chosen. source["chosen"] tells them
      from the others: one a start in beam, best_of_n and greedy; in sample all, as nothing chooses.
      Of a start whose first screen was broken there is none. source["ended"] is an `Ended`.
    screenshots: PNG by trajectory.keep's name, for trajectory.write.
    counts: "texts" proposed; "failed/KIND" of them; "merged": equal to another candidate of the same
      view; "paths" that were played, and "ended/WHY" of them; "broken_starts"; "steps" kept.
    """

    trajectories: list[Trajectory]
    screenshots: dict[str, bytes]
    counts: Counter[str]

    @property
    def chosen(self) -> list[Trajectory]:
        return [one for one in self.trajectories if one.source["chosen"]]


@dataclass(frozen=True)
class _Path:
    """A partial episode, from the task's first screen. start: where the search began. seen: the screen
    before each step, then the current one; of a step that has not been played yet, the current one is
    missing. place: which of its view's texts each step from the start was; this names the path."""

    start: State
    state: State
    seen: tuple[Observation, ...]
    steps: tuple[Step, ...] = ()
    place: tuple[int, ...] = ()
    ended: Ended | None = None

    @property
    def waits(self) -> bool:
        """For its last step to be played."""
        return self.ended is None and len(self.seen) == len(self.steps)

    @property
    def mean(self) -> float:
        return _mean(self.steps)


def explore(
    starts: Sequence[State],
    fleet: Screens,
    propose: Propose,
    score: Score | None,
    config: Exploration,
    seed: int,
    *,
    name: str = "explored",
    source: Mapping[str, Any] | None = None,
) -> Explored:
    """Episodes of every start: State(task, the environment's seed), or a state later in an episode. Its
    trajectories then begin with its actions, `source["given"]` of them, which have no score.

    score: the reward model; None in the modes that choose nothing, and then nothing has a score. Steps
      are scored in beam only, outcomes in every mode.
    name: begins the ids of the trajectories: NAME/TASK/SEED/PLACES (and a hash of what was given).
    source: goes into each one's own.

    A text that is no action is counted by kind. In beam it is dropped, and a path none of whose texts
    is an action ends ("unparsable"); in the other modes a path ends at the first such text. Candidates
    of a view that do the same, whatever their action_desc, are one: the first. Where no screen can be
    brought to a path's next state, the path ends ("broken") as it was before that step. Neither is
    judged, and one is chosen only where a start has nothing else.

    UserError where the mode needs a reward model and has none, or where it gives no number. ValueError
    for a start that is given twice.
    """
    beam_search = config.mode == "beam"
    if score is None and config.mode in ("beam", "best_of_n"):
        raise UserError(
            f"exploration.mode={config.mode} ranks by the reward model, and there is none; "
            "fix: mode sample or greedy, or an arm that has a reward model"
        )
    if len(set(starts)) < len(starts):
        raise ValueError("a start is given twice, and would give the same trajectories twice")
    counts: Counter[str] = Counter()
    beams = _first_screens(starts, fleet, config, counts)
    over = [[path for path in beam if path.ended] for beam in beams]
    for depth in itertools.count():  # every live path grows by a step, so there is an end
        live = [(i, path) for i, beam in enumerate(beams) for path in beam if not path.ended]
        if not live:
            break
        texts = _proposed([path for _, path in live], propose, config, depth, seed, counts)
        read = [
            _read(path, own, config, counts) for (_, path), own in zip(live, texts, strict=True)
        ]
        grown = [going for going, _ in read]
        if beam_search and score:
            grown = _scored(grown, score, config.earlier)
        pools = [[path for path in beam if path.ended] for beam in beams]
        for (i, _), going, (_, unparsable) in zip(live, grown, read, strict=True):
            pools[i] += going
            over[i] += unparsable
        if beam_search:  # sorted is stable: ties stay in order
            pools = [sorted(pool, key=lambda path: -path.mean)[: config.keep] for pool in pools]
        played = _played([path for pool in pools for path in pool], fleet, config)
        for i, pool in enumerate(pools):
            moved = [(path, next(played)) for path in pool]
            over[i] += [after for before, after in moved if before.waits and after.ended]
            beams[i] = [after for _, after in moved if after.ended != "broken"]
    return _results(over, score, config, seed, name, source or {}, counts)


def _first_screens(
    starts: Sequence[State], fleet: Screens, config: Exploration, counts: Counter[str]
) -> list[list[_Path]]:
    """A path for every start whose screens, from the task's first to its own, can be seen; by one call
    for all."""
    ways = [
        [replace(start, actions=start.actions[:i]) for i in range(len(start.actions) + 1)]
        for start in starts
    ]
    flat = [state for way in ways for state in way]
    screens = iter(fleet.observe(flat) if flat else ())
    beams: list[list[_Path]] = []
    for start, way in zip(starts, ways, strict=True):
        seen = (next(screens) for _ in way)
        shown = tuple(one for one in seen if not isinstance(one, Broken))
        if len(shown) < len(way):
            counts["broken_starts"] += 1
            beams.append([])
            continue
        steps = tuple(
            Step(keep(one.screenshot), one.elements, render(action), action)
            for one, action in zip(shown, start.actions, strict=False)
        )
        path = _Path(start, start, shown, steps)
        beams.append([replace(path, ended=_end(path, config))])
    return beams


def _proposed(
    live: Sequence[_Path],
    propose: Propose,
    config: Exploration,
    depth: int,
    seed: int,
    counts: Counter[str],
) -> list[Sequence[str]]:
    """The texts of every live path. Whole trajectories part at their start's first screen, for which
    all are asked at once; from there on each asks for itself."""
    several = config.mode == "beam" or (config.mode != "greedy" and depth == 0)
    n = config.candidates if several else 1
    views = [_view(path, config.earlier, len(path.steps)) for path in live]
    texts = list(propose(views, [_id(path, seed) for path in live], n))
    if [len(own) for own in texts] != [n] * len(live):
        raise ValueError(f"propose was asked for {n} texts for each of {len(live)} views")
    counts["texts"] += n * len(live)
    return texts


def _read(
    path: _Path, texts: Sequence[str], config: Exploration, counts: Counter[str]
) -> tuple[list[_Path], list[_Path]]:
    """The path with each of its candidates, not played yet; and as it ends with texts that are no
    action."""
    beam_search = config.mode == "beam"
    now, going, unparsable = path.seen[-1], {}, []
    for i, text in enumerate(texts):
        action, place = parse(text, now.frame), (*path.place, i)
        step = Step(keep(now.screenshot), now.elements, text, None)
        if isinstance(action, Failure):
            counts[f"failed/{action.kind}"] += 1
            steps = (*path.steps, replace(step, failure=action.kind))
            unparsable.append(replace(path, steps=steps, place=place, ended="unparsable"))
            continue
        if config.named:
            action = named(action, now.elements)
        # Samples of whole trajectories stay apart: nothing ranks them.
        same = unworded([action]) if beam_search else i
        if same in going:
            counts["merged"] += 1
            continue
        steps = (*path.steps, replace(step, action=action))
        going[same] = replace(path, state=path.state.after(action), steps=steps, place=place)
    if beam_search:
        unparsable = [] if going else unparsable[:1]
    return list(going.values()), unparsable


def _scored(grown: Sequence[Sequence[_Path]], score: Score, earlier: int) -> list[list[_Path]]:
    """The candidates of every path with their scores, by one call for all."""
    asked = [
        (_view(own[0], earlier, len(own[0].steps) - 1), [one.state.actions[-1] for one in own])
        for own in grown
        if own
    ]
    values = (value for given in _numbers(score, asked) for value in given)

    def scored(path: _Path) -> _Path:
        return replace(path, steps=(*path.steps[:-1], replace(path.steps[-1], score=next(values))))

    return [[scored(one) for one in own] for own in grown]


def _numbers(score: Score, asked: Sequence[tuple[View, Sequence[Action]]]) -> list[list[float]]:
    given = score(asked) if asked else []
    if [len(own) for own in given] != [len(actions) for _, actions in asked]:
        raise ValueError(f"score gave {len(given)} lists for {len(asked)} views, or short ones")
    if not all(math.isfinite(value) for own in given for value in own):
        raise UserError(
            "the reward model gave a score that is no finite number; its weights are broken. "
            "Fix: go on from an earlier checkpoint of it, with a lower learning rate"
        )
    return [[float(value) for value in own] for own in given]


def _played(paths: Sequence[_Path], fleet: Screens, config: Exploration) -> Iterator[_Path]:
    """The paths in their order, those that wait with their next screen, by one call for all."""
    states = [path.state for path in paths if path.waits]
    screens = iter(fleet.observe(states) if states else ())
    for path in paths:
        if path.waits:
            seen = next(screens)
            if isinstance(seen, Broken):
                path = replace(path, steps=path.steps[:-1], ended="broken")
            else:
                path = replace(path, seen=(*path.seen, seen))
                path = replace(path, ended=_end(path, config))
        yield path


def _end(path: _Path, config: Exploration) -> Ended | None:
    """Why the path ends on the screen that it now shows, if it does."""
    actions = path.state.actions
    if actions and actions[-1].action == "terminate":
        return "terminate"
    if path.seen[-1].done:
        return "done"
    return "max_steps" if len(path.steps) >= config.max_steps else None


def _view(path: _Path, earlier: int, i: int) -> View:
    """What is seen before step i, as by trajectory.view_at."""
    return View(
        goal=path.seen[0].goal,
        history=tuple(step.action.action_desc for step in path.steps[:i] if step.action),
        screenshots=tuple(one.screenshot for one in path.seen[max(0, i - earlier) : i + 1]),
        frame=path.seen[i].frame,
        elements=path.seen[i].elements,
    )


def _given(start: State) -> str:
    """Names the actions before a start, if there are any."""
    told = json.dumps([as_record(action) for action in start.actions])
    return hashlib.sha256(told.encode()).hexdigest()[:12] if start.actions else ""


def _id(path: _Path, seed: int) -> int:
    """31 bits, as the engine's row ids are int32."""
    told = json.dumps([seed, path.start.task, path.start.seed, _given(path.start), path.place])
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4], "big") >> 1


def _results(
    over: Sequence[Sequence[_Path]],
    score: Score | None,
    config: Exploration,
    seed: int,
    name: str,
    source: Mapping[str, Any],
    counts: Counter[str],
) -> Explored:
    """Writes the paths down, judges all outcomes by one call, and chooses."""
    told = {**source, "how": config.mode, "exploration_seed": seed}
    ended = [sorted(paths, key=lambda path: path.place) for paths in over]
    written = [
        [(path, _trajectory(path, name, told | _agreement(path, paths, config))) for path in paths]
        for paths in ended
    ]
    judged = [pair for pairs in written for pair in pairs if pair[0].ended in _JUDGED]
    scores: dict[str, float] = {}
    if score is not None:
        ends = [_view(path, config.earlier, outcome_at(one)) for path, one in judged]
        given = _numbers(score, [(view, [COMPLETED]) for view in ends])
        scores = {one.id: value for (_, one), (value,) in zip(judged, given, strict=True)}

    trajectories: list[Trajectory] = []
    screenshots: dict[str, bytes] = {}
    for pairs in written:
        for path, _ in pairs:
            screenshots |= {keep(seen.screenshot): seen.screenshot for seen in path.seen}
            counts.update({"paths": 1, "steps": len(path.steps), f"ended/{path.ended}": 1})
        of_start = [replace(one, outcome_score=scores.get(one.id)) for _, one in pairs]
        trajectories += choose(of_start, all_of_them=config.mode == "sample")
    return Explored(trajectories, screenshots, counts)


def choose(of_start: Sequence[Trajectory], all_of_them: bool = False) -> list[Trajectory]:
    """The episodes of one start, the best first and source["chosen"], the others after it in their
    order. all_of_them: nothing chooses."""
    if all_of_them:
        return [replace(one, source={**one.source, "chosen": True}) for one in of_start]
    # sorted is stable, so the first of equals is chosen
    best = sorted(of_start, key=_rank, reverse=True)[:1]
    others = [one for one in of_start if one is not best[0]]
    return [
        replace(one, source={**one.source, "chosen": n == 0})
        for n, one in enumerate([*best, *others])
    ]


def _rank(one: Trajectory) -> tuple[bool, float, float]:
    return one.source["ended"] in _JUDGED, one.outcome_score or 0.0, _mean(one.steps)


def _mean(steps: Sequence[Step]) -> float:
    """Cumulative reward by the number of steps that have one."""
    scores = [step.score for step in steps if step.score is not None]
    return sum(scores) / max(len(scores), 1)


def _agreement(path: _Path, paths: Sequence[_Path], config: Exploration) -> dict[str, float]:
    """Of best_of_n, whose paths are samples of the agent that know nothing of each other: the share of
    a start's that did the same, whatever their words, and came to an end by it."""
    if config.mode != "best_of_n":
        return {}
    done = [deeds(one.steps, config.named) for one in paths if one.ended in _JUDGED]
    same = done.count(deeds(path.steps, config.named)) if path.ended in _JUDGED else 0
    return {AGREEMENT: same / len(paths)}


def _trajectory(path: _Path, name: str, source: Mapping[str, Any]) -> Trajectory:
    last, state = path.seen[-1], path.state
    place = "/".join(filter(None, (_given(path.start), ".".join(map(str, path.place)))))
    return Trajectory(
        id=f"{name}/{state.task}/{state.seed}/{place}",
        task=state.task,
        seed=state.seed,
        goal=path.seen[0].goal,
        frame=last.frame,
        steps=path.steps,
        final=keep(last.screenshot),
        final_elements=last.elements,
        done=path.ended == "done",
        success=None if path.ended == "broken" else won(last),
        source={**source, "ended": path.ended, "given": len(path.start.actions)},
    )
