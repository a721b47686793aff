"""What an action did, by the screen's own list of elements, in place of what the agent said of it.

An agent that is still learning says one thing and presses another: `click the button`, and then a place
that happens to be the button's, or the one beside it. Its words are the history that agent and reward
model go by, so an episode that went wrong reads as one that went right, and an agent that learns from a
success learns words that led there by luck. Where a screen comes with a list of its elements the list
knows what was hit (hindsight, without a label): the words say that, and what is learnt from is a click
on its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.evaluators import POINTED
from selfevolve_jax.ui_genie.reward_data import element_at, unworded
from selfevolve_jax.ui_genie.trajectory import Step

NOTHING = "nothing"  # what is hit where no element lies


def named(action: Action, elements: Sequence[Element]) -> Action:
    """The action, its words `VERB NAME`: of a press what is hit (the smallest element under it, by what
    it shows or else by its kind), of typing what is typed. Words that are so already stay, whatever
    their verb, and so do those of other actions."""
    if action.action in POINTED:
        hit = element_at(elements, action.coordinate)
        name = hit.name if hit else NOTHING
    elif action.action == "type":
        name = action.text or ""
    else:
        return action
    said = action.action_desc.partition(" ")[2]
    if said == name:
        return action
    return replace(action, action_desc=f"{action.action.replace('_', ' ')} {name}")


def settled(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps as they should be learnt: every press at its element's place (`Element.place`), where
    the list of elements has it; presses of nothing are left out."""
    found = []
    for step in steps:
        action = step.action
        if action is not None and action.action in POINTED:
            hit = element_at(step.elements, action.coordinate)
            if hit is None:
                continue
            step = replace(step, action=replace(action, coordinate=hit.place))
        found.append(step)
    return tuple(found)


def deeds(steps: Sequence[Step], by_name: bool) -> tuple[Action, ...]:
    """What was done, whatever words were said of it: two episodes of a start with equal deeds are the
    same. by_name: presses of one element are equal wherever they hit it, and those of nothing none."""
    done = settled(steps) if by_name else steps
    return unworded(step.action for step in done if step.action)
