"""Small made-up episodes: each screen is a letter, whose bytes stand for its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.trajectory import Step, Trajectory, keep

FRAME = Frame(160, 210)
OK = Element("button", "OK", (10, 50, 50, 70))
CANCEL = Element("button", "Cancel", (60, 50, 120, 70))
HELP = Element("link", "Help", (10, 100, 40, 110))
ELEMENTS = (OK, CANCEL, HELP)


def click(desc: str = "Click OK", at: tuple[int, int] = (30, 60)) -> Action:
    return Action("click", desc, coordinate=at)


def terminate(status: str = "success") -> Action:
    return Action("terminate", "I am done", status=status)


def picture(letter: str) -> bytes:
    return f"picture {letter}".encode()


def name(letter: str) -> str:
    return keep(picture(letter))


def pictures(letters: str) -> dict[str, bytes]:
    return {name(letter): picture(letter) for letter in letters}


def step(letter: str, action: Action | None, elements: tuple[Element, ...] = ELEMENTS) -> Step:
    failure = "malformed_json" if action is None else None
    return Step(name(letter), elements, "what the agent wrote", action, failure)


def episode(
    id: str,
    screens: str,
    actions: Sequence[Action | None] | None = None,
    goal: str = "Press OK",
    task: str = "click-test",
    seed: int = 7,
    done: bool = True,
    success: bool | None = True,
    outcome_score: float | None = None,
    source: Mapping[str, Any] | None = None,
) -> Trajectory:
    """One screen more than actions; without actions a click on each."""
    if actions is None:
        actions = [click(f"Click {id} {i}", (20 + i, 60)) for i in range(len(screens) - 1)]
    return Trajectory(
        id=id,
        task=task,
        seed=seed,
        goal=goal,
        frame=FRAME,
        steps=tuple(step(s, a) for s, a in zip(screens, actions, strict=False)),
        final=name(screens[-1]),
        final_elements=(HELP,),
        done=done,
        success=success,
        outcome_score=outcome_score,
        source={"round": 0} if source is None else source,
    )
