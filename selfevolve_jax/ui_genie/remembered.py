"""Screens that were seen before, kept: what a state shows is a function of the state, and loops come
back to the same ones (the held-out starts of every test, what two arms do alike)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from selfevolve_jax.ui_genie.environment import Broken, Fleet, Observation, State, ended, on_screen

KEPT_BYTES = 256 << 20


class Remembered:
    """A fleet's observe() that plays no state twice, as long as it is among those last asked for whose
    screenshots take `kept_bytes`. A broken state is tried again. counts: the fleet's and "remembered".
    """

    def __init__(self, fleet: Fleet, kept_bytes: int = KEPT_BYTES) -> None:
        self._fleet, self._room = fleet, kept_bytes
        self._seen: OrderedDict[State, Observation] = OrderedDict()

    @property
    def counts(self) -> Counter[str]:
        return self._fleet.counts

    def observe(self, states: Sequence[State]) -> list[Observation | Broken]:
        """As Fleet.observe."""
        wanted = list(dict.fromkeys(on_screen(state) for state in states))
        fresh = [state for state in wanted if state not in self._seen]
        known: dict[State, Observation | Broken] = {
            state: self._seen[state] for state in wanted if state in self._seen
        }
        self._fleet.counts["remembered"] += len(known)
        known.update(zip(fresh, self._fleet.observe(fresh), strict=True))
        for state in wanted:
            self._keep(state, known[state])
        return [ended(state, known[on_screen(state)]) for state in states]

    def _keep(self, state: State, seen: Observation | Broken) -> None:
        if isinstance(seen, Broken):
            return
        if state not in self._seen:
            self._room -= len(seen.screenshot)
        self._seen[state] = seen
        self._seen.move_to_end(state)
        while self._room < 0:
            _, oldest = self._seen.popitem(last=False)
            self._room += len(oldest.screenshot)
