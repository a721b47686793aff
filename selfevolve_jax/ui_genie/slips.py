"""Successes played again with one step wrong: negatives for the claim "the task is complete".

UI-Genie's corruptions (corruption.py) splice pictures that were seen, and so miss what a real agent's
failures end on: the page after a box was left unticked or a neighbour pressed, and then Submit (that
made-up negatives do not look like agents' errors is GAIA's point too, arXiv 2601.18197). Here the wrong
step is played, and all that come after it, so the last screen is a real one.

  omitted      one step is left out
  substituted  one click or long press goes to an unrelated element (hard_negatives.on_another)

The label is by construction: the environment's verdict is not read. Left out is what ends on the very
picture that the success ended on, unless other words were said on the way: a step that was not needed,
or a miss that leaves no trace. What the page forgives all the same is called bad wrongly: of 206 slips
from scripts' demonstrations one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from selfevolve_jax.ui_genie.actions import Action, render
from selfevolve_jax.ui_genie.environment import Broken, State
from selfevolve_jax.ui_genie.evaluators import POINTED
from selfevolve_jax.ui_genie.explore import Screens
from selfevolve_jax.ui_genie.hard_negatives import on_others
from selfevolve_jax.ui_genie.named import named
from selfevolve_jax.ui_genie.reward_data import By, claims_completion, succeeded
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory, done_before, keep, outcome_at

Kind = Literal["omitted", "substituted"]
_PURPOSE = 64  # of the draws


def slip(
    trajectories: Sequence[Trajectory],
    by: By,
    fleet: Screens,
    per_step: int,
    seed: int,
    by_name: bool = False,
) -> tuple[list[Trajectory], dict[str, bytes], Counter[str]]:
    """Each step of the successes among these trajectories left out once, and put on at most `per_step`
    other elements; all are played by one call of the fleet.

    by: whose word a success is. by_name: what is said of a step is what it then hit (named.named).
    Returns the slips, their screenshots for trajectory.write, and counts: each kind, "broken" (a screen
    could not be reached) and "same" (nothing tells it from the success).
    """
    asked: list[tuple[Trajectory, Kind, str, tuple[Action, ...]]] = []
    for of in trajectories:
        if succeeded(of, by):
            asked += [(of, *one) for one in _slips(of, per_step, seed)]
    ways = [
        [State(of.task, of.seed, actions[:i]) for i in range(len(actions) + 1)]
        for of, _, _, actions in asked
    ]
    seen = iter(fleet.observe([state for way in ways for state in way]) if ways else ())
    made: list[Trajectory] = []
    screenshots: dict[str, bytes] = {}
    counts: Counter[str] = Counter()
    for (of, kind, place, actions), way in zip(asked, ways, strict=True):
        shown = [next(seen) for _ in way]
        screens = [one for one in shown if not isinstance(one, Broken)]
        if len(screens) < len(shown):
            counts["broken"] += 1
            continue
        end = next((i for i, one in enumerate(screens) if one.done), len(actions))
        screens = screens[: end + 1]
        last = screens[-1]
        acts = actions[:end]
        if by_name:
            acts = tuple(named(a, one.elements) for a, one in zip(acts, screens, strict=False))
        words = [action.action_desc for action in acts]
        if keep(last.screenshot) == of.final and (kind == "omitted" or words == _words(of)):
            counts["same"] += 1
            continue
        counts[kind] += 1
        screenshots |= {keep(one.screenshot): one.screenshot for one in screens}
        made.append(
            dataclasses.replace(
                of,
                id=f"{of.id}~{kind}~{place}",
                steps=tuple(
                    Step(keep(one.screenshot), one.elements, render(action), action)
                    for one, action in zip(screens, acts, strict=False)
                ),
                final=keep(last.screenshot),
                final_elements=last.elements,
                done=last.done,
                success=None,
                outcome_score=None,
                source={
                    "corruption": kind,
                    "of": of.id,
                    "success_by": by,
                    "parent": dict(of.source),
                },
            )
        )
    return made, screenshots, counts


def _words(of: Trajectory) -> list[str]:
    return [action.action_desc for action in done_before(of, outcome_at(of))]


def _slips(
    of: Trajectory, per_step: int, seed: int
) -> Iterator[tuple[Kind, str, tuple[Action, ...]]]:
    """(kind, where it is, the actions with it)."""
    acted = (step.action for step in of.steps if step.action is not None)
    acts = tuple(action for action in acted if not claims_completion(action))
    for i, truth in enumerate(acts):
        before, after = acts[:i], acts[i + 1 :]
        if before or after:
            yield "omitted", str(i), (*before, *after)
        if truth.action not in POINTED:
            continue
        rng = np.random.default_rng([seed, _PURPOSE, of.seed, i])
        for n, wrong in enumerate(on_others(of, i, truth, per_step, rng)):
            yield "substituted", f"{i}-{n}", (*before, wrong, *after)
