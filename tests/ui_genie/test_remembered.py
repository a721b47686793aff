"""Screens that were seen are not played again, and what comes of it is the fleet's."""

import pytest

from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import Broken, State
from selfevolve_jax.ui_genie.remembered import Remembered
from tests.ui_genie import screens
from tests.ui_genie.screens import World, at, expected, fleet, tap

DONE = Action("terminate", "done", status="success")


def test_no_state_is_played_twice_whatever_was_said():
    world = World()
    with fleet(world) as played:
        screen = Remembered(played)
        first = [at("a", 0), at("a", 0, 1), at("b", 3, 9)]
        assert screen.observe(first) == [expected(state) for state in first]
        world.log.clear()
        said = State("a", 0, (tap(1, "press one"),))
        assert screen.observe([said, *first]) == [expected(at("a", 0, 1)), *map(expected, first)]
        assert world.log == [] and screen.counts["remembered"] == 3
        assert screen.observe([at("a", 0, 1, 2)]) == [expected(at("a", 0, 1, 2))]


def test_terminate_ends_what_is_remembered_as_it_ends_what_is_played():
    with fleet(World()) as played:
        screen = Remembered(played)
        (open_,) = screen.observe([at("a", 0, 1)])
        (over,) = screen.observe([at("a", 0, 1).after(DONE)])
        assert not open_.done and over.done and over.reward == 0
        assert not screen.observe([at("a", 0, 1)])[0].done


def test_a_broken_state_is_tried_again():
    reset, lost = screens.Screen.reset, [1, 1, 1]

    async def unlucky(self, task, seed, passing):
        if lost and lost.pop():
            raise ConnectionError("gone")
        return await reset(self, task, seed, passing)

    with pytest.MonkeyPatch.context() as patch, fleet(World(), 1) as played:
        patch.setattr(screens.Screen, "reset", unlucky)
        screen = Remembered(played)
        assert isinstance(screen.observe([at("a", 0)])[0], Broken)
        assert screen.observe([at("a", 0)]) == [expected(at("a", 0))]


def test_of_more_than_fits_the_last_ones_are_kept():
    world, states = World(), [at("a", seed) for seed in range(4)]
    size = len(expected(states[0]).screenshot)
    with fleet(world, 1) as played:
        screen = Remembered(played, 3 * size)
        screen.observe(states[:3])
        screen.observe(states[:1])  # so that the second is the oldest
        screen.observe(states[3:])
        world.log.clear()
        screen.observe([states[0], states[2], states[3]])
        assert world.log == []
        assert screen.observe(states[1:2]) == [expected(states[1])]
        assert world.calls("reset") == ["reset a 1"]
        # More than fits at once is played and shown all the same.
        assert screen.observe(states) == [expected(state) for state in states]
