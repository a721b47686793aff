"""Pages of two MiniWoB++ tasks that scripts can play, without a browser: what the loop is tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from selfevolve_jax.ui_genie.environment import Broken, Element, Observation, State
from selfevolve_jax.ui_genie.miniwob import FRAME
from selfevolve_jax.ui_genie.reward_data import element_at
from tests import seeing

TASKS = ("click-test-2", "click-button-sequence")
_NAMES = ("ONE", "TWO")


class Pages:
    """Two buttons, whose places depend on the seed. verdict: what becomes of the page's own word.
    before: called with every list of states that is observed; it may raise. broken: states that
    cannot be reached."""

    def __init__(
        self,
        verdict: Callable[[State, bool], bool] = lambda state, won: won,
        before: Callable[[Sequence[State]], None] = lambda states: None,
        broken: Callable[[State], bool] = lambda state: False,
    ) -> None:
        self.verdict, self.before, self.broken = verdict, before, broken
        self.counts: Counter[str] = Counter()

    def observe(self, states: Sequence[State]) -> list[Observation | Broken]:
        self.before(states)
        self.counts["steps"] += len(states)
        return [Broken("lost") if self.broken(s) else self._seen(s) for s in states]

    def _seen(self, state: State) -> Observation:
        buttons = _buttons(state.seed)
        wanted = _NAMES[state.seed % 2 :][:1] if state.task == TASKS[0] else _NAMES
        hits = (element_at(buttons, action.coordinate) for action in state.actions)
        pressed = [button.text for button in hits if button is not None][: len(wanted)]
        over = len(pressed) == len(wanted)
        done = over or any(a.action == "terminate" for a in state.actions)
        won = self.verdict(state, over and pressed == list(wanted))
        goal = (
            f"Click button {wanted[0]}."
            if state.task == TASKS[0]
            else "Click button ONE, then click button TWO."
        )
        picture = _picture(state.seed % 50, len(pressed))
        return Observation(goal, picture, FRAME, buttons, done, float(won and done))


def _buttons(seed: int) -> tuple[Element, ...]:
    top = 60 + seed % 7 * 10
    return tuple(
        Element("button", name, (10 + 70 * i, top, 60 + 70 * i, top + 20))
        for i, name in enumerate(_NAMES)
    )


@cache
def _picture(seed: int, pressed: int) -> bytes:
    return seeing.png(160, 210, 10 * seed + pressed)
