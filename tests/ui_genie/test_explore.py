"""A small world of letters in place of a browser, with proposals and scores that are known, so that
what each mode does can be written out by hand."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import reward_data, trajectory
from selfevolve_jax.ui_genie.actions import Action, Frame, render
from selfevolve_jax.ui_genie.contract import COMPLETED
from selfevolve_jax.ui_genie.environment import Broken, Element, Observation, State
from selfevolve_jax.ui_genie.explore import Exploration, explore

FRAME = Frame(26, 4)
DONE = Action("terminate", "over", status="success")


def press(letter, desc=None):
    return Action("click", desc or letter, coordinate=(ord(letter) - ord("a"), 0))


def moves(state):
    """The letters pressed so far; a terminate is no letter."""
    places = (a.coordinate for a in state.actions if a.coordinate is not None)
    return "".join(chr(ord("a") + x) for x, _ in places)


class World:
    """Pressing letters; `ends` are the words that end the episode, `goal` the one that succeeds."""

    def __init__(self, goal="ba", ends=(), broken=()):
        self.goal, self.ends, self.broken, self.calls = goal, {goal, *ends}, set(broken), []

    def observe(self, states):
        self.calls.append([moves(s) + "!" * (s.actions[-1:] == (DONE,)) for s in states])
        return [self.see(s) for s in states]

    def see(self, state):
        word = moves(state)
        if word in self.broken:
            return Broken(f"{word} never loads")
        over = word in self.ends
        return Observation(
            goal=f"write {self.goal}",
            screenshot=f"{state.task} {state.seed} {word}".encode(),
            frame=FRAME,
            elements=(Element("text", word, (0, 0, 1, 1)),),
            done=over or state.actions[-1:] == (DONE,),
            reward=float(word == self.goal),
        )


def word_of(view):
    return view.screenshots[-1].decode().split(" ")[2]


class Agent:
    """texts: by the word on the screen; where there are none, the first letters of the alphabet."""

    def __init__(self, texts=None):
        self.texts, self.calls, self.views = texts or {}, [], []

    def __call__(self, views, ids, n):
        self.calls.append(([word_of(v) for v in views], n))
        self.views += views
        self.ids = ids
        return [
            self.texts.get(word_of(v), [render(press(x)) for x in "abcdefghij"])[:n] for v in views
        ]


class Judge:
    """scores: of a word after an action (`word!` for terminate); outcomes: of a word as a result."""

    def __init__(self, scores=None, outcomes=None):
        self.scores, self.outcomes, self.calls, self.asked = scores or {}, outcomes or {}, [], []

    def __call__(self, asked):
        self.asked += asked
        self.calls.append([(word_of(v), len(actions)) for v, actions in asked])
        return [[self.of(word_of(v), action) for action in actions] for v, actions in asked]

    def of(self, word, action):
        if action == COMPLETED:
            return self.outcomes.get(word, 0.0)
        if action.coordinate is None:
            return self.scores.get(word + "!", 0.5)
        return self.scores.get(word + chr(ord("a") + action.coordinate[0]), 0.5)


START = State("letters", 7)


def run(config, world=None, agent=None, judge=None, starts=(START,), **more):
    return explore(starts, world or World(), agent or Agent(), judge, config, 0, **more)


def words(trajectories):
    return [moves(trajectory.state_at(one, len(one.steps))) for one in trajectories]


def ends(explored):
    return {
        word: one.source["ended"]
        for one, word in zip(explored.trajectories, words(explored.trajectories), strict=True)
    }


# a looks better at first, and leads nowhere
DECEIVING = {"a": 0.9, "b": 0.6, "aa": 0.1, "ab": 0.1, "ba": 1.0, "bb": 0.2}


def test_a_beam_finds_what_greedy_misses_step_by_step():
    world, agent = World(), Agent()
    judge = Judge(DECEIVING, {"ba": 0.8, "aa": 0.3})
    found = run(Exploration("beam", 2, 2, 2), world, agent, judge)
    # means after two steps: aa and ab (.9 + .1) / 2 = .5, ba .8, bb .4; of aa and ab the first
    assert world.calls == [[""], ["a", "b"], ["ba", "aa"]]
    assert agent.calls == [([""], 2), (["a", "b"], 2)]
    # one call a step for all paths, and one for all outcomes, in the order of their places
    assert judge.calls == [[("", 2)], [("a", 2), ("b", 2)], [("aa", 1), ("ba", 1)]]
    assert words(found.trajectories) == ["ba", "aa"] and words(found.chosen) == ["ba"]
    best, other = found.trajectories
    assert [step.score for step in best.steps] == [0.6, 1.0] and best.outcome_score == 0.8
    assert best.done and best.success is True and best.source["ended"] == "done"
    assert not other.done and other.success is False and other.source["ended"] == "max_steps"
    assert (best.id, other.id) == ("explored/letters/7/1.0", "explored/letters/7/0.0")

    greedy = run(Exploration("greedy", max_steps=2), judge=Judge(DECEIVING))
    assert words(greedy.chosen) == ["aa"] and greedy.chosen[0].success is False


@pytest.mark.parametrize("keep, second", [(1, ["a"]), (2, ["a", "b"]), (3, ["a", "b", "c"])])
def test_as_many_paths_go_on_as_keep_says(keep, second):
    world, agent = World(), Agent()
    run(Exploration("beam", 3, keep, 2), world, agent, Judge(DECEIVING))
    assert world.calls[1] == second and len(world.calls[2]) == keep
    assert agent.calls == [([""], 3), (second, 3)]


def test_ties_stay_in_order():
    world = World()
    run(Exploration("beam", 4, 2, 2), world, judge=Judge())
    assert world.calls == [[""], ["a", "b"], ["aa", "ab"]]


def test_a_path_that_is_over_competes_by_its_mean_and_not_its_sum():
    # x is over after .7; the others would pass it by their sum after a second step: .6 + .6
    texts = {"": [render(press("x")), render(press("a"))]}
    scores = {"x": 0.7, "a": 0.6, "aa": 0.6, "ab": 0.5}
    world = World(goal="x")
    found = run(Exploration("beam", 2, 2, 2), world, Agent(texts), Judge(scores))
    assert world.calls == [[""], ["x", "a"], ["aa"]]  # x (.7) and aa (.6); ab (.55) has no room
    assert set(ends(found).items()) == {("x", "done"), ("aa", "max_steps")}
    # with room for one it is alone in the beam, and the search is over
    world, agent = World(goal="x"), Agent(texts)
    found = run(Exploration("beam", 2, 1, 9), world, agent, Judge(scores))
    assert world.calls == [[""], ["x"]] and len(agent.calls) == 1 and words(found.chosen) == ["x"]


def test_what_was_pushed_out_of_the_beam_is_judged_and_may_be_chosen():
    texts = {"": [render(press("x")), render(press("a"))]}
    scores = {"x": 0.5, "a": 0.6, "aa": 0.9, "ab": 0.8}
    world = World(goal="x")
    found = run(Exploration("beam", 2, 2, 2), world, Agent(texts), Judge(scores, {"x": 0.9}))
    assert world.calls[-1] == ["aa", "ab"]
    assert words(found.trajectories) == ["x", "aa", "ab"] and words(found.chosen) == ["x"]
    assert [one.source["chosen"] for one in found.trajectories] == [True, False, False]


def test_equal_outcomes_are_chosen_between_by_the_mean_then_by_place():
    found = run(Exploration("beam", 2, 2, 1), judge=Judge({"a": 0.2, "b": 0.4}))
    assert words(found.trajectories) == ["b", "a"]
    found = run(Exploration("beam", 2, 2, 1), judge=Judge({"a": 0.4, "b": 0.4}))
    assert words(found.trajectories) == ["a", "b"]


def test_terminate_ends_a_path_with_the_verdict_so_far_and_is_not_in_the_history_of_its_judge():
    agent = Agent({"a": [render(DONE), render(press("b"))]})
    judge = Judge({"a!": 0.9, "a": 0.9})
    found = run(Exploration("beam", 2, 1, 5), agent=agent, judge=judge)
    (one,) = found.trajectories
    assert one.source["ended"] == "terminate" and not one.done and one.success is False
    assert [step.action for step in one.steps] == [press("a"), DONE]
    assert one.final == trajectory.keep(b"letters 7 a")
    view, actions = judge.asked[-1]
    assert actions == [COMPLETED] and view.history == ("a",) and word_of(view) == "a"


def test_an_episode_that_the_page_ends_is_judged_with_its_whole_history():
    judge = Judge(DECEIVING, {"ba": 1.0})
    run(Exploration("beam", 2, 2, 5), judge=judge)
    outcomes = {
        word_of(view): view.history for view, actions in judge.asked if actions == [COMPLETED]
    }
    assert outcomes["ba"] == ("b", "a")


def test_max_steps_is_exact():
    for steps in (1, 3):
        world = World(goal="zzzz")
        found = run(Exploration("beam", 2, 2, steps), world, judge=Judge())
        assert {len(one.steps) for one in found.trajectories} == {steps}
        assert len(world.calls) == 1 + steps and set(ends(found).values()) == {"max_steps"}


def test_texts_that_are_no_action_are_counted_and_dropped_and_equal_ones_merged():
    texts = {
        "": [
            "hello",
            render(press("a", "first")),
            render(press("a", "the same under another name")),
            render(Action("click", "far out", coordinate=(99, 0))),
            render(press("b")),
        ]
    }
    judge = Judge()
    found = run(Exploration("beam", 5, 5, 1), agent=Agent(texts), judge=judge)
    assert judge.asked[0][1] == [press("a", "first"), press("b")]
    assert found.counts == {
        "texts": 5,
        "failed/no_tool_call": 1,
        "failed/outside_frame": 1,
        "merged": 1,
        "paths": 2,
        "steps": 2,
        "ended/max_steps": 2,
    }
    # a path's name tells which text it was
    assert [one.id.rpartition("/")[2] for one in found.trajectories] == ["1", "4"]


def test_a_path_without_any_action_ends_unparsable_and_is_never_judged_or_preferred():
    agent = Agent({"a": ["?", "??"]})
    judge = Judge({"a": 0.9, "b": 0.1})
    found = run(Exploration("beam", 2, 2, 2), World("bb"), agent, judge)
    (other,) = (one for one in found.trajectories if one.source["ended"] == "unparsable")
    assert other.source == {
        "how": "beam",
        "exploration_seed": 0,
        "ended": "unparsable",
        "given": 0,
        "chosen": False,
    }
    last = other.steps[-1]
    assert (last.action, last.failure, last.text) == (None, "no_tool_call", "?")
    assert other.outcome_score is None and other.success is False
    assert "a" not in [word for call in judge.calls[2:] for word, _ in call]

    alone = run(Exploration("beam", 2, 2, 2), agent=Agent({"": ["?", "??"]}), judge=judge)
    assert [(one.source["ended"], one.source["chosen"]) for one in alone.trajectories] == [
        ("unparsable", True)
    ]
    assert alone.counts["failed/no_tool_call"] == 2


def test_a_broken_state_ends_its_path_before_the_step_and_is_no_success():
    world = World("ab", broken=["a", "bb"])
    found = run(Exploration("beam", 2, 2, 2), world, judge=Judge({"a": 0.9, "bb": 0.9}))
    by_place = {one.id.rpartition("/")[2]: one for one in found.trajectories}
    first, second = by_place["0"], by_place["1.1"]
    assert first.source["ended"] == second.source["ended"] == "broken"
    assert first.success is None and first.outcome_score is None and not first.done
    assert first.steps == () and [step.action for step in second.steps] == [press("b")]
    assert second.final == trajectory.keep(b"letters 7 b")
    assert found.counts["ended/broken"] == 2 and words(found.chosen) == ["ba"]
    assert world.calls[1] == ["a", "b"] and world.calls[2] == ["bb", "ba"]


def test_a_start_that_never_loads_gives_nothing_and_is_counted():
    world = World(broken=[""])
    for config in (Exploration("beam"), Exploration("greedy")):
        found = run(config, world, judge=Judge())
        assert found.trajectories == [] and found.counts == {"broken_starts": 1}
    assert run(Exploration("beam"), judge=Judge(), starts=()).trajectories == []


@pytest.mark.parametrize("mode", ["beam", "best_of_n"])
def test_without_a_reward_model_nothing_can_be_ranked(mode):
    world = World()
    with pytest.raises(UserError, match=f"exploration.mode={mode}.*fix: mode sample or greedy"):
        run(Exploration(mode), world)
    assert world.calls == []


def test_samples_are_whole_trajectories_that_part_at_the_first_screen():
    world, agent = World("ab"), Agent({"c": ["no call"], "a": [render(press("b"))]})
    found = run(Exploration("sample", 3, 1, 2), world, agent)
    assert agent.calls == [([""], 3), (["a", "b", "c"], 1)]
    assert world.calls == [[""], ["a", "b", "c"], ["ab", "ba"]]
    assert words(found.trajectories) == ["ab", "ba", "c"] and len(found.chosen) == 3
    assert [one.success for one in found.trajectories] == [True, False, False]
    assert {one.outcome_score for one in found.trajectories} == {None}
    assert {step.score for one in found.trajectories for step in one.steps} == {None}


def test_equal_samples_stay_apart():
    found = run(Exploration("sample", 2, 1, 1), agent=Agent({"": [render(press("a"))] * 2}))
    assert words(found.trajectories) == ["a", "a"] and "merged" not in found.counts
    assert len({one.id for one in found.trajectories}) == 2


def test_best_of_n_is_chosen_by_outcome_in_one_call():
    judge = Judge({"a": 1.0}, {"ba": 0.7, "ca": 0.9})
    found = run(Exploration("best_of_n", 3, 1, 2), World("ca"), judge=judge)
    assert judge.calls == [[("aa", 1), ("ba", 1), ("ca", 1)]]
    assert words(found.trajectories) == ["ca", "aa", "ba"] and words(found.chosen) == ["ca"]
    assert [one.outcome_score for one in found.trajectories] == [0.9, 0.0, 0.7]


def test_best_of_n_counts_how_many_did_the_same():
    """Four samples: two that press a in different words, one that presses b, one that is no call. The
    reward model likes b's end more and so chooses it; as the votes do not, nobody teaches it either
    way."""
    twice = [render(press("a")), render(press("a", "in other words"))]
    texts = [*twice, render(press("b")), "no call"]
    judge = Judge({}, {"a": 0.6, "b": 0.7})
    found = run(Exploration("best_of_n", 4, 1, 1), agent=Agent({"": texts}), judge=judge)
    assert words(found.trajectories) == ["b", "a", "a", ""]
    assert [one.source["agreement"] for one in found.trajectories] == [0.25, 0.5, 0.5, 0.0]
    by_judge = [reward_data.succeeded(one, "judge") for one in found.trajectories]
    assert by_judge == [True, True, True, None]
    assert [reward_data.succeeded(one, "votes") for one in found.trajectories] == [
        None,  # .7, and one of four
        True,  # .6, and two of four
        True,
        None,
    ]
    doubted = run(
        Exploration("best_of_n", 4, 1, 1),
        agent=Agent({"": texts}),
        judge=Judge({}, {"a": 0.1, "b": 0.2}),
    )
    # All that agree are doubted by the judge; b, which only one did, is wrong by both.
    said = [reward_data.succeeded(one, "votes") for one in doubted.trajectories]
    assert words(doubted.trajectories) == ["b", "a", "a", ""] and said == [False, None, None, None]
    beam = run(Exploration("beam", 4, 2, 1), agent=Agent({"": texts}), judge=judge)
    assert all("agreement" not in one.source for one in beam.trajectories)
    assert [reward_data.succeeded(one, "votes") for one in beam.chosen] == [True]  # .7, by itself


def test_many_tasks_share_every_call():
    world, agent, judge = World(), Agent(), Judge(DECEIVING)
    starts = [State("letters", seed) for seed in range(3)]
    found = run(Exploration("beam", 2, 2, 2), world, agent, judge, starts)
    assert [len(call) for call in world.calls] == [3, 6, 6]
    assert [len(views) for views, _ in agent.calls] == [3, 6]
    assert [len(call) for call in judge.calls] == [3, 6, 6]
    assert [one.seed for one in found.chosen] == [0, 1, 2] and set(words(found.chosen)) == {"ba"}


def drawn(views, ids, n):
    """Random letters, ends and nonsense, from the ids alone."""
    texts = []
    for id in ids:
        rng = np.random.default_rng(id)
        choices = [*(render(press(x)) for x in "abcd"), render(DONE), "nonsense"]
        texts.append([choices[i] for i in rng.integers(len(choices), size=n)])
    return texts


def weighed(asked):
    """A score from the view and the action, and nothing else."""

    def one(view, action):
        told = repr((view.goal, view.history, view.screenshots, action)).encode()
        return hashlib.sha256(told).digest()[0] / 255

    return [[one(view, action) for action in actions] for view, actions in asked]


@pytest.mark.parametrize("mode", ["beam", "best_of_n", "sample", "greedy"])
def test_chunks_of_starts_give_what_all_at_once_give(mode):
    starts = [State("letters", seed) for seed in range(7)] + [State("letters", 3, (press("b"),))]
    config = Exploration(mode, 4, 3, 4)

    def of(starts, seed=5):
        return explore(starts, World("abc", ["d"]), drawn, weighed, config, seed)

    whole = of(starts)
    for size in (1, 3):
        parts = [of(starts[i : i + size]) for i in range(0, len(starts), size)]
        assert [one for part in parts for one in part.trajectories] == whole.trajectories
        assert sum((part.counts for part in parts), start=type(whole.counts)()) == whole.counts
    backwards = {one.id: one for one in of(starts[::-1]).trajectories}
    assert backwards == {one.id: one for one in whole.trajectories}
    assert len(backwards) == len(whole.trajectories)
    other = of(starts, seed=6).trajectories
    assert [one.steps for one in other] != [one.steps for one in whole.trajectories]


def test_every_live_path_of_a_search_has_an_id_of_its_own():
    seen = []

    def watch(views, ids, n):
        seen.extend(ids)
        return drawn(views, ids, n)

    starts = [State("letters", seed) for seed in range(9)]
    starts.append(State("letters", 0, (press("a"),)))
    explore(starts, World("abcd"), watch, weighed, Exploration("beam", 5, 5, 4), 0)
    assert len(set(seen)) == len(seen) > 50 and min(seen) >= 0 and max(seen) < 2**31


def test_what_was_judged_can_be_seen_again_from_what_is_kept(tmp_path):
    """The views that the reward model was asked about are those of trajectory.view_at."""
    judge = Judge(DECEIVING, {"ba": 0.8})
    found = run(
        Exploration("beam", 2, 2, 3, earlier=2), World("zzz"), judge=judge, source={"round": 1}
    )
    trajectory.write(tmp_path, found.trajectories, found.screenshots)
    kept = trajectory.read(tmp_path)
    assert kept == found.trajectories and kept[0].source["round"] == 1
    folder = tmp_path / trajectory.SCREENSHOTS
    asked = [view for view, actions in judge.asked if actions != [COMPLETED]]
    for one in kept:
        for i in range(len(one.steps)):
            assert trajectory.view_at(one, i, folder, 2) in asked
        outcome = trajectory.view_at(one, trajectory.outcome_at(one), folder, 2)
        assert (outcome, [COMPLETED]) in judge.asked
    assert max(len(view.screenshots) for view in asked) == 3


def test_a_search_may_begin_in_the_middle_of_an_episode():
    world, judge = World("bac"), Judge({"bac": 1.0}, {"bac": 0.9})
    start = START.after(press("b")).after(press("a"))
    found = run(Exploration("beam", 3, 2, 3), world, judge=judge, starts=[start])
    assert world.calls == [["", "b", "ba"], ["bac", "baa"]]
    best = found.chosen[0]
    assert words([best]) == ["bac"] and best.source["given"] == 2 and best.success
    assert [step.score for step in best.steps] == [None, None, 1.0]
    assert [step.text for step in best.steps[:2]] == [render(press("b")), render(press("a"))]
    assert best.id.startswith("explored/letters/7/") and best.id.endswith("/2")
    assert judge.asked[0][0].history == ("b", "a")
    # the length counts what was given
    at_once = run(Exploration("greedy", max_steps=2), World("bac"), starts=[start])
    assert at_once.counts["ended/max_steps"] == 1 and words(at_once.chosen) == ["ba"]


def test_mistakes_are_refused_by_name():
    with pytest.raises(ValueError, match="twice"):
        run(Exploration("greedy"), starts=[START, START])
    with pytest.raises(UserError, match="no finite number"):
        run(Exploration("beam"), judge=lambda asked: [[math.nan] * len(a) for _, a in asked])
    with pytest.raises(ValueError, match="asked for 10 texts"):
        run(Exploration("sample"), agent=lambda views, ids, n: [["?"]])
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mode": "best"}, r"exploration.mode='best'.*fix: one of beam, best_of_n"),
        ({"candidates": 0}, "candidates=0; fix: at least 1"),
        ({"keep": 0}, "keep=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"earlier": -1}, "earlier=-1"),
        ({"temperature": 0.0}, r"temperature=0.0 with mode beam.*fix"),
    ]
    for options, said in wrong:
        with pytest.raises(UserError, match=said):
            Exploration(**options)
    assert Exploration("greedy", temperature=0.7).drawn_at == 0 and Exploration().drawn_at == 1


class Buttons(World):
    """The letters are things on the screen: a and b are one button, c another, the rest are none."""

    def see(self, state):
        shown = (Element("button", "AB", (0, 0, 2, 1)), Element("button", "C", (2, 0, 3, 1)))
        return replace(super().see(state), elements=shown)


def test_steps_say_what_they_hit_and_samples_that_hit_the_same_agree():
    texts = [render(press(x, "click C")) for x in "abcd"]
    agent, judge = Agent({"": texts}), Judge({}, {"a": 0.6})
    config = Exploration("best_of_n", 4, max_steps=2, named=True)
    found = run(config, Buttons(ends="d"), agent, judge)
    agent_saw = [view.history for view in agent.views if word_of(view) in ("a", "b", "c")]
    assert agent_saw == [("click AB",), ("click AB",), ("click C",)]
    first = {one.source["ended"]: one.steps[0] for one in found.trajectories}
    assert first["done"].action == press("d", "click nothing")
    assert first["done"].text == render(press("d", "click C"))  # what was written stays
    # a, b and c go on with a, as all do where nothing else is said: "aa", "ba", "ca", "d"
    agreed = {
        word: one.source["agreement"]
        for word, one in zip(words(found.trajectories), found.trajectories, strict=True)
    }
    assert agreed == {"aa": 0.5, "ba": 0.5, "ca": 0.25, "d": 0.25}
    judged = {view.history for view, _ in judge.asked}
    assert ("click AB", "click AB") in judged and ("click nothing",) in judged
    # the agent's own words, and pixels, where it is not asked for
    plain = run(replace(config, named=False), Buttons(ends="d"), Agent({"": texts}), Judge())
    assert {one.steps[0].action.action_desc for one in plain.trajectories} == {"click C"}
    assert {one.source["agreement"] for one in plain.trajectories} == {0.25}
