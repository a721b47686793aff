"""An agent's episodes on AndroidWorld's tasks, one by one, in a folder from which a killed job goes on.

    FOLDER/config.json          what was asked: weights, tasks, seeds, steps, prompt style
    FOLDER/episodes/TASK-SEED   a trajectory (trajectory.write)
    FOLDER/screenshots          every picture once
    FOLDER/summary.json         `report`, once all episodes were played

An episode that the device broke says nothing of the agent: it is not kept, and played again by the
same command. EXERCISED ONLY AGAINST A RECORDED DEVICE, as android_world.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import trajectory
from selfevolve_jax.ui_genie.environment import Broken, Observation, State
from selfevolve_jax.ui_genie.explore import Exploration, Propose, Screens, explore
from selfevolve_jax.ui_genie.trajectory import Trajectory
from selfevolve_jax.wilson import wilson

KIND = "AndroidWorld episodes"
EPISODES = "episodes"
# Groups of episodes of which none could be played, one after another, before the device is given up.
LOST_AT_MOST = 3


def play(
    starts: Sequence[State],
    screens: Screens,
    at_once: int,
    propose: Propose,
    max_steps: int,
    folder: epath.Path,
    say: Callable[[str], None],
) -> tuple[list[Trajectory], dict[State, str]]:
    """(the trajectories of all starts that could be played, in their order; why the others could not).
    Those that the folder has are read. at_once: emulators: an episode keeps one to itself, as a device
    cannot be brought back to where it was.

    UserError where the device is lost; DiskError."""
    broken: dict[State, str] = {}
    left = [start for start in starts if not _place(folder, start).exists()]
    config = Exploration(mode="greedy", max_steps=max_steps, earlier=0)
    lost = 0
    for at in range(0, len(left), at_once):
        group = left[at : at + at_once]
        told = _Told(screens)
        made = explore(group, told, propose, None, config, 0, name="android-world")
        for one in made.trajectories:
            if one.source["ended"] != "broken":
                start = State(one.task, one.seed)
                # Last the trajectories: an episode that has them is whole.
                trajectory.write(_place(folder, start).parent, [one], made.screenshots, folder)
                say(f"{one.task}, seed {one.seed}: {_ended(one)}")
        missing = [start for start in group if not _place(folder, start).exists()]
        for start in missing:
            broken[start] = told.reasons.get(start, "no reason given")
            say(f"{start.task}, seed {start.seed}: not played: {broken[start]}")
        lost = lost + 1 if len(missing) == len(group) else 0
        if lost == LOST_AT_MOST:
            raise UserError(
                f"AndroidWorld: no episode could be played {lost} times in a row. The last: "
                f"{broken[group[-1]]}. Fix: start the emulator again; the same command goes on."
            )
    places = (_place(folder, start).parent for start in starts if start not in broken)
    return [one for place in places for one in trajectory.read(place)], broken


def report(found: Sequence[Trajectory]) -> dict[str, Any]:
    """Success of all episodes and by task, each with n and Wilson's interval at 95% as [low, high]; how
    episodes ended; answers that are no action, by kind. An episode is a success if the device says so
    when the agent terminates; one that was cut off is none, as in AndroidWorld. At least one."""
    tasks: dict[str, list[Trajectory]] = {}
    for one in found:
        tasks.setdefault(one.task, []).append(one)
    return {
        **_rate(found),
        "tasks": {task: _rate(own) for task, own in tasks.items()},
        "steps": sum(len(one.steps) for one in found),
        "ended": dict(sorted(Counter(one.source["ended"] for one in found).items())),
        "failed": dict(
            sorted(Counter(s.failure for one in found for s in one.steps if s.failure).items())
        ),
    }


def table(found: dict[str, Any]) -> str:
    rows = [*found["tasks"].items(), ("all", found)]
    width = max(len(task) for task, _ in rows)
    return "\n".join(
        f"{task:<{width}}  {each['successes']:>4} of {each['episodes']:<4} "
        f"{100 * each['success']:5.1f}%  ({100 * each['interval'][0]:.1f} to "
        f"{100 * each['interval'][1]:.1f})"
        for task, each in rows
    )


class _Told:
    """Screens that remember why a start could not be played."""

    def __init__(self, screens: Screens) -> None:
        self._screens = screens
        self.reasons: dict[State, str] = {}

    def observe(self, states: Sequence[State]) -> list[Observation | Broken]:
        seen = list(self._screens.observe(states))
        for state, one in zip(states, seen, strict=True):
            if isinstance(one, Broken):
                self.reasons[State(state.task, state.seed)] = one.reason
        return seen


def _place(folder: epath.Path, start: State) -> epath.Path:
    return folder / EPISODES / f"{start.task}-{start.seed}" / trajectory.TRAJECTORIES


def _ended(one: Trajectory) -> str:
    verdict = "success" if one.success else "no success"
    return f"{verdict} after {len(one.steps)} steps ({one.source['ended']})"


def _rate(found: Sequence[Trajectory]) -> dict[str, Any]:
    n, wins = len(found), sum(bool(one.success) for one in found)
    return {
        "episodes": n,
        "successes": wins,
        "success": wins / n,
        "interval": list(wilson(wins, n)),
    }
