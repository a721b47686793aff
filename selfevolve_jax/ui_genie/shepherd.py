"""Step labels by continuation, after Math-Shepherd (arXiv 2312.08935), as UI-Genie has them
(arXiv 2505.21496): hard labels, without a person.

Every step of a success is good. A step of a failure is good if success could still be reached after
it: of `n` continuations sampled from the state that it led to, one succeeds, or a success among the
same trajectories went through that very state. A step that ended its episode (the environment ended
it, the agent terminated, or wrote what did not parse) is bad, and nothing is sampled: there is nothing
to go on from. A failure that was merely cut off at its last step is sampled there too.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from selfevolve_jax.ui_genie.environment import State
from selfevolve_jax.ui_genie.reward_data import By, Judged, claims_completion, row, succeeded
from selfevolve_jax.ui_genie.trajectory import Trajectory, state_at

# (states, continuations of each, seed) -> for each state, whether each continuation succeeded
ContinueFrom = Callable[[Sequence[State], int, int], Sequence[Sequence[bool]]]


@dataclass(frozen=True)
class Labelled:
    """trajectories: all that were given, in order, those with a verdict with a label on every step.
    rows: one for each labelled step that has an action. counts: "successes", "failures", "unjudged"
    (trajectories), "positive", "negative" (steps), of a failure's steps "sampled", "known" (a success
    went through the state), "ended"; "states" and "continuations" that were asked for. rescued: the
    share of a failure's steps that are good nevertheless; None where it has none.
    """

    trajectories: list[Trajectory]
    rows: list[Judged]
    counts: dict[str, int]
    rescued: float | None


def label_steps(
    trajectories: Sequence[Trajectory],
    by: By,
    continue_from: ContinueFrom,
    seed: int,
    n: int = 5,
) -> Labelled:
    """Labels the steps of all trajectories that have a verdict.

    by: whose word the trajectories' success is; `continue_from` must go by the same, since the rows
      say so. It is called once, with every state once: beam search's paths share their beginnings.
      What a path that did not parse led to is a failure by anyone's word.

    A step that claims completion is labelled but gives no row: the outcome's row is the same question.
    ValueError where `continue_from` gives another number of verdicts than asked for.
    """
    verdicts = [_verdict(of, by) for of in trajectories]
    known: dict[State, str] = {}
    for of, good in zip(trajectories, verdicts, strict=True):
        if good:
            for i in range(1, len(of.steps)):
                known.setdefault(state_at(of, i), of.id)
    asked: dict[State, None] = {}  # a set that keeps its order
    for of, good in zip(trajectories, verdicts, strict=True):
        if good is False:
            asked |= dict.fromkeys(
                state_at(of, i + 1) for i in range(len(of.steps)) if not _ends(of, i)
            )
    states = [state for state in asked if state not in known]
    given = continue_from(states, n, seed) if states else []
    if len(given) != len(states) or any(len(verdicts_of) != n for verdicts_of in given):
        raise ValueError(f"continue_from must give {n} verdicts for each of {len(states)} states")
    reached = {state: sum(map(bool, wins)) for state, wins in zip(states, given, strict=True)}

    counts: Counter[str] = Counter(states=len(states), continuations=n * len(states))
    counts.update(dict.fromkeys(("successes", "failures", "unjudged", "positive", "negative"), 0))
    counts.update(dict.fromkeys(("sampled", "known", "ended"), 0))
    labelled: list[Trajectory] = []
    rows: list[Judged] = []
    rescued = 0
    for of, good in zip(trajectories, verdicts, strict=True):
        counts["unjudged" if good is None else "successes" if good else "failures"] += 1
        if good is None:
            labelled.append(of)
            continue
        steps = []
        for i, step in enumerate(of.steps):
            label, why = (True, {"how": "success"}) if good else _label(of, i, known, reached, n)
            if not good:
                counts[why["how"]] += 1
                rescued += label
            counts["positive" if label else "negative"] += 1
            steps.append(dataclasses.replace(step, label=label))
            if step.action is not None and not claims_completion(step.action):
                rows.append(row(of, i, step.action, label, "shepherd", by, provenance=why))
        labelled.append(dataclasses.replace(of, steps=tuple(steps)))
    of_failures = counts["sampled"] + counts["known"] + counts["ended"]
    return Labelled(labelled, rows, dict(counts), rescued / of_failures if of_failures else None)


def _verdict(of: Trajectory, by: By) -> bool | None:
    unparsed = bool(of.steps) and of.steps[-1].action is None
    return False if unparsed else succeeded(of, by)


def _ends(of: Trajectory, i: int) -> bool:
    """Whether nothing can come after step i."""
    action = of.steps[i].action
    if action is None or action.action == "terminate":
        return True
    return of.done and i == len(of.steps) - 1


def _label(
    of: Trajectory, i: int, known: dict[State, str], reached: dict[State, int], n: int
) -> tuple[bool, dict[str, Any]]:
    if _ends(of, i):
        return False, {"how": "ended"}
    state = state_at(of, i + 1)
    if state in known:
        return True, {"how": "known", "success": known[state]}
    return reached[state] > 0, {"how": "sampled", "continuations": n, "successes": reached[state]}
