import itertools
import sys
import time
import types
from collections import Counter

import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import environment, fan_out
from selfevolve_jax.ui_genie.actions import Action
from selfevolve_jax.ui_genie.environment import Broken, Fleet, State
from tests.ui_genie import screens
from tests.ui_genie.screens import World, at, expected, fleet, tap

DONE = Action("terminate", "done", status="success")


# ---- observe is a pure function of states


def test_states_in_any_order_on_any_number_of_screens_show_the_same():
    rng = np.random.default_rng(0)
    states = [
        at(task, seed, *taps)
        for task, seed in itertools.product("ab", range(3))
        for taps in ((), (1,), (1, 2), (1, 2, 3), (4,), (1, 9), (1, 9, 2))
    ]
    for n in (1, 2, 5):
        world = World()
        with fleet(world, n) as screen:
            for _ in range(4):
                asked = [states[i] for i in rng.integers(len(states), size=17)]
                assert screen.observe(asked) == [expected(state) for state in asked]
        assert world.opened <= n and world.closed == world.opened
        assert world.most_at_once == n  # all of the screens, and each one thing at a time


def test_nothing_asked_nothing_done():
    world = World()
    with fleet(world) as screen:
        assert screen.observe([]) == []
    assert world.opened == 0


def test_after_the_end_nothing_is_played():
    world = World()
    with fleet(world, 1) as screen:
        first, second = screen.observe([at("a", 0, 1, 9), at("a", 0, 1, 9, 5, 6)])
    assert first == second and first.done and first.reward == 2
    assert world.calls("act") == ["act 1", "act 9"]


def test_terminate_ends_the_episode_and_never_reaches_the_screen():
    world = World()
    asked = [at("a", 0, 1), at("a", 0, 1).after(DONE), at("a", 0).after(DONE)]
    won = at("a", 0, 9).after(DONE)
    with fleet(world, 1) as screen:
        before, after, at_once, at_the_end = screen.observe([*asked, won])
    assert not before.done and after.done and at_once.done
    assert (after.screenshot, after.reward) == (before.screenshot, 0)
    assert at_the_end == expected(at("a", 0, 9))  # the page's own verdict stands
    assert all(call.startswith(("reset", "act")) for _, call in world.log)


def test_terminate_is_only_ever_last():
    with pytest.raises(ValueError, match="terminate"):
        State("a", 0, (DONE, tap(1)))


def test_what_an_agent_says_of_its_action_changes_nothing():
    world = World()
    said = [State("a", 0, (tap(1, desc),)) for desc in ("ok", "press ok", "")]
    with fleet(world, 3) as screen:
        seen = screen.observe(said)
    assert seen == [expected(at("a", 0, 1))] * 3
    assert world.log == [(1, "reset a 0"), (1, "act 1")]


# ---- scheduling


def test_a_state_asked_twice_is_played_once():
    world = World()
    with fleet(world, 4) as screen:
        screen.observe([at("a", 0, 1)] * 9 + [at("b", 0)] * 3)
    assert sorted(world.calls("")) == ["act 1", "reset a 0", "reset b 0"]


def test_a_screen_goes_on_from_where_it_stands():
    world = World()
    with fleet(world, 2) as screen:
        screen.observe([at("a", 0, 1, 2), at("b", 7)])
        world.log.clear()
        screen.observe([at("b", 7, 3), at("a", 0, 1, 2, 4)])
        assert sorted(world.calls("")) == ["act 3", "act 4"]
        world.log.clear()
        screen.observe([at("a", 0, 1, 2, 4), at("b", 7, 3)])  # just as they stand
        assert world.log == []
        assert screen.counts == {"resets": 2, "steps": 4, "replays": 1}


def test_the_longest_prefix_wins():
    world = World()
    with fleet(world, 2) as screen:
        screen.observe([at("a", 0, 1, 2), at("a", 0)])  # one screen in depth, one at the start
        world.log.clear()
        screen.observe([at("a", 0, 1, 2, 3)])
        assert world.calls("") == ["act 3"]
        world.log.clear()
        # each to its own: the other screen could go to 5 only, this one to both
        screen.observe([at("a", 0, 5), at("a", 0, 1, 2, 3, 4)])
        assert sorted(world.calls("")) == ["act 4", "act 5"]


def test_a_screen_keeps_to_its_task_and_screens_part():
    """A page is loaded once for all its episodes, and not by every screen."""
    world = World()
    asked = [at(task, seed) for task in "abcd" for seed in range(6)]
    with fleet(world, 2) as screen:
        screen.observe(asked)
        for number in (1, 2):
            tasks = [call.split()[1] for who, call in world.log if who == number]
            runs = [task for task, _ in itertools.groupby(tasks)]
            assert len(runs) == len(set(runs)), "no screen comes back to a task"
            assert len(runs) <= 3
        assert sorted(world.calls("reset")) == [f"reset {one.task} {one.seed}" for one in asked]
        last = {who: call.split()[1] for who, call in world.log}
        world.log.clear()
        screen.observe([at(task, 7) for task in last.values()])
        assert {who: call.split()[1] for who, call in world.log} == last


def test_a_way_asked_in_pieces_is_gone_once():
    world = World()
    path = [at("a", 0, *range(1, k)) for k in range(5, 0, -1)]
    with fleet(world, 1) as screen:
        assert screen.observe(path) == [expected(state) for state in path]
    assert world.calls("") == ["reset a 0", "act 1", "act 2", "act 3", "act 4"]


def test_siblings_are_replayed_and_counted():
    world = World()
    with fleet(world, 1) as screen:
        screen.observe([at("a", 0, 1, 2)])
        screen.observe([at("a", 0, 1, 2, k) for k in (3, 4, 5)])
        assert screen.counts["resets"] == 3
        assert screen.counts["replays"] == 1 + 2 * 2
        assert screen.counts["steps"] == 2 + 1 + 2 * 3


def test_many_states_are_scheduled_quickly():
    states = [at(str(t), s, *taps) for t in range(20) for s in range(20) for taps in ((1,), (1, 2))]
    with fleet(World(), 8) as screen:
        start = time.process_time()
        assert screen.observe(states) == [expected(state) for state in states]
        assert time.process_time() - start < 5


# ---- faults


@pytest.mark.parametrize("call", ["open", "reset", "act"])
@pytest.mark.parametrize("kind", ["crash", "hang"])
def test_a_lost_screen_is_replaced_and_its_state_redone(kind, call):
    world = World(faults=Counter({(kind, call): 2}))
    asked = [at("a", 0, 1, 2), at("b", 0, 1), at("c", 0)]
    with fleet(world, 2, timeout_s=0.1) as screen:
        assert screen.observe(asked) == [expected(state) for state in asked]
        name = {"crash": "crashes", "hang": "timeouts"}[kind]
        assert screen.counts[name] == 2 and screen.counts["broken"] == 0
        lost = 0 if call == "open" else 2  # a screen that never opened is not there to be closed
        assert world.closed == lost
    assert world.closed == world.opened


def test_slow_is_not_hung():
    world = World(faults=Counter({("slow", "reset"): 4, ("slow", "act"): 4}))
    with fleet(world, 4) as screen:
        screen.observe([at("a", seed, 1) for seed in range(4)])
        assert screen.counts == {"resets": 4, "steps": 4}


def test_a_state_out_of_reach_is_a_value_and_the_others_come_through():
    world = World()

    async def unlucky(self, task, seed, passing):
        if seed == 13:
            raise ConnectionError("net::ERR_FAILED")
        return await reset(self, task, seed, passing)

    reset = screens.Screen.reset
    with pytest.MonkeyPatch.context() as patch, fleet(world, 2) as screen:
        patch.setattr(screens.Screen, "reset", unlucky)
        asked = [at("a", seed, 1) for seed in (12, 13, 14)]
        first, broken, last = screen.observe([*asked, asked[1].after(DONE)])[:3]
        assert (first, last) == (expected(asked[0]), expected(asked[2]))
        assert isinstance(broken, Broken)
        assert "task a, seed 13" in broken.reason and "net::ERR_FAILED" in broken.reason
        assert screen.counts["crashes"] == environment.ATTEMPTS
        assert screen.counts["broken"] == 1  # asked twice, and one state


def test_an_environments_own_timeout_is_its_failure_and_not_the_fleets():
    async def late(self, task, seed, passing):
        raise TimeoutError("the device said nothing")

    with pytest.MonkeyPatch.context() as patch, fleet(World(), 1) as screen:
        patch.setattr(screens.Screen, "reset", late)
        [broken] = screen.observe([at("a", 0)])
        assert isinstance(broken, Broken) and "the device said nothing" in broken.reason
        assert screen.counts["timeouts"] == 0 and screen.counts["crashes"] == 3


def test_a_mistake_of_the_user_stops_the_call_and_the_fleet_lives():
    world = World()
    with fleet(world, 2) as screen:
        with pytest.raises(UserError, match="no task 'unknown'"):
            screen.observe([at("unknown", 0), *(at("a", seed, 1) for seed in range(30))])
        assert screen.counts["resets"] < 31
        assert screen.observe([at("a", 3, 1)]) == [expected(at("a", 3, 1))]


def test_an_interrupted_call_leaves_no_screen_in_an_unknown_state():
    world = World(faults=Counter({("hang", "act"): 2}))
    screen = fleet(world, 2, timeout_s=60)
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(coroutine, loop):
            job = submit(coroutine, loop)
            patch.setattr(job, "result", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            while not world.calls("act"):
                time.sleep(0.01)
            return job

        submit = environment.asyncio.run_coroutine_threadsafe
        patch.setattr(environment.asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            screen.observe([at("a", 0, 1), at("b", 0, 1)])
    world.faults.clear()
    assert screen.observe([at("a", 0, 1)]) == [expected(at("a", 0, 1))]
    screen.close()
    screen.close()  # once more does nothing
    assert world.closed == world.opened


def test_no_screens_is_refused():
    with pytest.raises(UserError, match="fleet of 0 screens"):
        Fleet(World().open, 0)


# ---- many fleets as one


def test_the_split_is_whole_even_and_keeps_episodes_together():
    states = [at("t", seed, *taps) for seed in range(40) for taps in ((), (1,), (2,))]
    parts = fan_out.split(states, 4)
    assert sorted(itertools.chain(*parts)) == list(range(120))
    assert max(map(len, parts)) <= 30
    homes = [
        {k for k, part in enumerate(parts) for i in part if states[i].seed == s} for s in range(40)
    ]
    assert sum(len(home) == 1 for home in homes) > 30
    assert fan_out.split(states, 4) == parts
    # one episode alone is shared by all
    assert [len(p) for p in fan_out.split([at("t", 0, k) for k in range(7)], 4)] == [2, 2, 2, 1]
    assert fan_out.split([], 3) == [[], [], []]


class FakeHand:
    """A fleet in this process, that is lost as often as told."""

    def __init__(self, losses=0):
        self.fleet, self.losses, self.renewed, self.waiting = fleet(World()), losses, 0, False

    def start(self, states):
        self.waiting = True

        def wait():
            if self.losses:
                self.losses -= 1
                raise fan_out.HandLost("gone")
            answer = fan_out._answer(self.fleet, states)
            self.waiting = False
            return answer

        return wait

    def renew(self):
        self.renewed, self.waiting = self.renewed + 1, False

    def close(self):
        self.fleet.close()


def test_hands_answer_in_order_and_a_lost_one_is_renewed():
    hands = [FakeHand(), FakeHand(losses=2), FakeHand()]
    asked = [at("a", seed, 1) for seed in range(12)] * 2
    with fan_out.Fanned(hands) as fanned:
        assert fanned.observe(asked) == [expected(state) for state in asked]
        assert fanned.observe(asked[:3]) == [expected(state) for state in asked[:3]]
        assert [hand.renewed for hand in hands] == [0, 2, 0]
        assert fanned.counts["hands_lost"] == 2 and fanned.counts["resets"] >= 12


def test_a_hand_that_is_always_lost_breaks_its_own_states_alone():
    hands = [FakeHand(), FakeHand(losses=99)]
    asked = [at("a", seed) for seed in range(8)]
    with fan_out.Fanned(hands) as fanned:
        seen = fanned.observe(asked)
        broken = {i for i, one in enumerate(seen) if isinstance(one, Broken)}
        assert broken == set(fan_out.split(asked, 2)[1]) and fanned.counts["broken"] == len(broken)


def test_after_a_mistake_no_answer_is_left_over():
    hands = [FakeHand(), FakeHand()]
    asked = [at("unknown" if seed == 0 else "a", seed) for seed in range(8)]
    with fan_out.Fanned(hands) as fanned:
        with pytest.raises(UserError, match="no task"):
            fanned.observe(asked)
        assert not any(hand.waiting for hand in hands)
        assert fanned.observe(asked[1:]) == [expected(state) for state in asked[1:]]


@pytest.mark.multiprocess
def test_processes_answer_and_a_dead_one_is_replaced():
    asked = [at("a", seed, 1, 2) for seed in range(6)]
    with fan_out.over_processes(screens.two_screens, 2) as fanned:
        assert fanned.observe(asked) == [expected(state) for state in asked]
        with pytest.raises(UserError, match="no task 'unknown'"):
            fanned.observe([at("unknown", 0)])
        fanned._hands[0]._process.kill()
        fanned._hands[0]._process.join()
        assert fanned.observe(asked) == [expected(state) for state in asked]
        assert fanned.counts["hands_lost"] == 1
        processes = [hand._process for hand in fanned._hands]
    assert all(process.exitcode == 0 for process in processes)


def test_without_ray_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="uv sync --extra ray"):
        fan_out.over_ray(screens.undisturbed, 2)
    for over in (fan_out.over_processes, fan_out.over_ray):
        with pytest.raises(UserError, match="give 1 or more"):
            over(screens.undisturbed, 0)


def stand_in_for_ray():
    """As much of Ray as is used, in this process."""

    class ActorGone(Exception):
        pass

    class Handle:
        def __init__(self, kind, *args):
            self.target, self.dead = kind(*args), False

        def __getattr__(self, name):
            def remote(*args):
                return lambda: getattr(self.target, name)(*args), self

            return types.SimpleNamespace(remote=remote)

    ray = types.ModuleType("ray")
    ray.started, ray.killed = 0, []

    def init():
        ray.started += 1

    def remote(kind):
        made = types.SimpleNamespace(remote=lambda *args: Handle(kind, *args))
        return types.SimpleNamespace(options=lambda num_cpus: made)

    def get(asked, timeout=None):
        call, handle = asked
        if handle.dead:
            raise ActorGone("out of memory")
        return call()

    ray.init, ray.remote, ray.get, ray.kill = init, remote, get, ray.killed.append
    ray.is_initialized = lambda: ray.started > 0
    ray.exceptions = types.SimpleNamespace(RayActorError=ActorGone)
    return ray


def test_ray_actors_answer_and_a_dead_one_is_replaced(monkeypatch):
    ray = stand_in_for_ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    asked = [at("a", seed, 1) for seed in range(6)]
    with fan_out.over_ray(screens.undisturbed, 2) as fanned:
        assert ray.started == 1
        assert fanned.observe(asked) == [expected(state) for state in asked]
        fanned._hands[1]._actor.dead = True
        assert fanned.observe(asked) == [expected(state) for state in asked]
        assert fanned.counts["hands_lost"] == 1 and len(ray.killed) == 1
        with pytest.raises(UserError, match="no task"):
            fanned.observe([at("unknown", 0)])
    assert len(ray.killed) >= 3
