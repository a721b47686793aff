"""Stages: what an agent is still tried on, whether it is valid, what its score is."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.dgm.archive import Evaluation
from selfevolve_jax.dgm.contract import Usage
from selfevolve_jax.dgm.staged import (
    StagesConfig,
    asked,
    judged,
    keeps,
    score,
    stages,
    wanted,
)
from selfevolve_jax.errors import UserError

TASKS = [f"task-{i}" for i in range(200)]
SWE = StagesConfig(sizes=(10, 50, 140))


def evaluation(task, seed=0, solved=False, partial=None, empty=False, group="g"):
    return Evaluation(
        task=task,
        seed=seed,
        split="train",
        group=group,
        solved=solved,
        partial=float(solved) if partial is None else partial,
        empty=empty,
        reason="",
        tests={},
        usage=Usage(),
        cpu_s=0.0,
        wall_s=0.0,
        files="",
    )


def tried(jobs, n_solved, **options):
    """Evaluations of these jobs, the first n_solved of them solved."""
    return [evaluation(t, s, i < n_solved, **options) for i, (t, s) in enumerate(jobs)]


def at(parts, *solved):
    """Evaluations of as many stages as there are numbers, each the solved of its stage."""
    return [e for part, n in zip(parts, solved, strict=False) for e in tried(part, n)]


PARTS = stages(TASKS, SWE, seed=7)


def test_stages_add_up_and_follow_from_the_seed_alone():
    assert [len(part) for part in PARTS] == [10, 50, 140]
    assert {task for part in PARTS for task, _ in part} == set(TASKS)
    assert stages(reversed(TASKS), SWE, seed=7) == PARTS
    assert [t for t, _ in stages(TASKS, SWE, seed=8)[0]] != [t for t, _ in PARTS[0]]
    assert [t for t, _ in PARTS[0]] != sorted(TASKS)[:10]


def test_repeats_ask_the_same_tasks_again_with_other_seeds():
    thrice = stages(TASKS, StagesConfig(sizes=(10, 50, 140), repeats=3), seed=7)
    assert [len(part) for part in thrice] == [30, 150, 420]
    jobs = [job for part in thrice for job in part]
    assert len(set(jobs)) == len(jobs) == len({seed for _, seed in jobs})
    # One attempt each is the first of three: a run can be compared with one that repeats.
    assert thrice[0][::3] == PARTS[0]


def test_no_sizes_is_one_stage_of_everything():
    assert [len(p) for p in stages(TASKS, StagesConfig(sizes=()), 0)] == [200]


def test_four_of_ten_open_the_second_stage_and_three_do_not():
    assert wanted(PARTS, [], [], SWE) == PARTS[0]
    nine = tried(PARTS[0], 9)[:9]
    assert wanted(PARTS, nine, [], SWE) == PARTS[0][9:]  # not before all ten are there
    assert wanted(PARTS, at(PARTS, 3), [], SWE) == []
    assert wanted(PARTS, at(PARTS, 4), [], SWE) == PARTS[1]


def test_the_last_stage_is_for_those_above_the_threshold_and_among_the_two_best():
    mine = at(PARTS, 5, 20)  # 25 of 60
    assert wanted(PARTS, at(PARTS, 4, 20), [], SWE) == []  # 24 of 60 are 40%, not above
    assert wanted(PARTS, mine, [], SWE) == PARTS[2]
    worse, equal, better = at(PARTS, 4, 20), at(PARTS, 6, 19), at(PARTS, 6, 21)
    assert wanted(PARTS, mine, [worse, worse, better], SWE) == PARTS[2]
    assert wanted(PARTS, mine, [equal, equal, better], SWE) == PARTS[2]
    assert wanted(PARTS, mine, [better, better], SWE) == []
    # 10 of 10 is no better than 25 of 60: it never came so far.
    assert wanted(PARTS, mine, [better, at(PARTS, 10)], SWE) == PARTS[2]
    # One who did badly later on is compared on the same 60 tasks.
    assert wanted(PARTS, mine, [better, at(PARTS, 6, 21, 0)], SWE) == []


def test_whoever_was_let_in_finishes():
    better = at(PARTS, 10, 50)
    begun = at(PARTS, 5, 20) + tried(PARTS[2][:3], 0)
    assert wanted(PARTS, begun, [better, better], SWE) == PARTS[2][3:]


def test_evaluations_that_no_stage_asks_for_are_passed_over():
    strange = [evaluation("elsewhere", 1, True), evaluation(PARTS[0][0][0], 5, True)]
    mine = at(PARTS, 3)
    assert wanted(PARTS, strange, [], SWE) == PARTS[0]
    assert wanted(PARTS, mine + strange, [], SWE) == []
    assert asked(PARTS, mine + strange) == mine


def test_verdicts():
    assert judged(PARTS, [], [], SWE) == ("unfinished", "10 of 10 evaluations are to come")
    assert judged(PARTS, at(PARTS, 4), [], SWE) == (
        "unfinished",
        "50 of 60 evaluations are to come",
    )
    silent = tried(PARTS[0], 0, empty=True)
    assert judged(PARTS, silent, [], SWE) == ("invalid", "no answer in any of 10 evaluations")
    spoke_once = [*silent[:9], evaluation(*PARTS[0][9])]
    assert judged(PARTS, spoke_once, [], SWE) == ("valid", "")
    # An answer to something that was not asked does not count.
    assert judged(PARTS, [*silent, evaluation("elsewhere")], [], SWE)[0] == "invalid"


def test_scores_by_hand():
    # a: 1 of 2; b: 1 of 1; c: 0 of 3: (1/2 + 1 + 0) / 3
    rows = [("a", True), ("a", False), ("b", True), ("c", False), ("c", False), ("c", False)]
    some = [evaluation(t, i, s, partial=0.25 + 0.75 * s) for i, (t, s) in enumerate(rows)]
    assert score(some) == pytest.approx(1 / 2)
    # partial: a: (1 + .25)/2 = .625; b: 1; c: .25
    assert score(some, "partial") == pytest.approx((0.625 + 1 + 0.25) / 3)
    with pytest.raises(ValueError):
        score([])


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [5, 15, 35, 60])
def test_two_fifths_are_exactly_the_threshold(tasks, n):
    """6 of 15 attempts, 5 at each of 3 tasks, must be 0.4, and not 0.39999999999999997."""
    jobs = [(f"t{i}", r) for i in range(tasks) for r in range(n)]
    assert score(tried(jobs, 2 * tasks * n // 5)) == 0.4
    assert score(tried([(f"t{i}", r) for i in range(3) for r in range(5)], 6)) == 0.4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_the_order_of_evaluations_is_of_no_account(values, rng):
    some = [evaluation(f"t{i % 2}", i, partial=v) for i, v in enumerate(values)]
    assert score(rng.sample(some, len(some)), "partial") == score(some, "partial")


def test_partial_credit_may_open_stages():
    config = StagesConfig(sizes=(10, 50), by="partial")
    mine = tried(PARTS[0], 0, partial=0.5)
    assert wanted(PARTS[:2], mine, [], config) == PARTS[1]
    assert wanted(PARTS[:2], mine, [], StagesConfig(sizes=(10, 50))) == []


def test_the_gate():
    assert keeps(0.0, 0.5) and keeps(0.0, 0.5, "all")
    assert keeps(0.4, 0.5, "better") and not keeps(0.39, 0.5, "better")
    for tenth in range(1, 11):  # 0.3 passes 0.4 - 0.1, which is 0.30000000000000004
        assert keeps((tenth - 1) / 10, tenth / 10, "better")
    assert not keeps(0.49, 0.5, "better", leeway=0.0)


def test_bad_options_are_named():
    for bad in (
        {"sizes": (10, 0)},
        {"threshold": 40.0},
        {"top": 0},
        {"repeats": 0},
        {"by": "luck"},
    ):
        with pytest.raises(UserError, match=next(iter(bad))):
            StagesConfig(**bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="asks for 200 tasks, and there are 60"):
        stages(TASKS[:60], SWE, 0)
    with pytest.raises(UserError, match="no task"):
        stages([], StagesConfig(sizes=()), 0)
    with pytest.raises(UserError, match="gate"):
        keeps(0.5, 0.5, "some")  # pyright: ignore[reportArgumentType]


def run(parts, outcomes, others, config, rng, killed_after=None):
    """A controller with a pool: jobs end in the order that rng says. Returns the evaluations."""
    there = []
    while jobs := wanted(parts, there, others, config):
        assert not {(e.task, e.seed) for e in there} & set(jobs)
        assert len(set(jobs)) == len(jobs)
        # Some workers' worth of them end, in any order, before it asks again.
        for job in rng.sample(jobs, rng.randint(1, min(len(jobs), 4))):
            there.append(evaluation(*job, solved=outcomes[job]))
            if len(there) == killed_after:
                return there
    return there


@settings(max_examples=60)
@given(
    seed=st.integers(0, 5),
    repeats=st.integers(1, 3),
    p=st.sampled_from([0.2, 0.45, 0.7]),
    rivals=st.integers(0, 3),
    rng=st.randoms(use_true_random=False),
)
def test_whatever_order_jobs_end_in_and_wherever_it_stops_the_end_is_the_same(
    seed, repeats, p, rivals, rng
):
    config = StagesConfig(sizes=(5, 10, 10), repeats=repeats)
    parts = stages(TASKS[:25], config, seed)
    outcomes = {job: rng.random() < p for part in parts for job in part}
    others = [
        [evaluation(*job, solved=rng.random() < 0.5) for part in parts[:2] for job in part]
        for _ in range(rivals)
    ]
    final = run(parts, outcomes, others, config, random.Random(1))
    keys = {(e.task, e.seed) for e in final}
    assert len(keys) == len(final) and len(final) in (5 * repeats, 15 * repeats, 25 * repeats)
    again = run(parts, outcomes, others, config, random.Random(2))
    assert {(e.task, e.seed) for e in again} == keys
    assert score(again) == score(final)
    assert judged(parts, again, others, config)[0] == "valid"
    # Killed at any instant, what was done and what is wanted have nothing in common, and going on
    # leads to the same end.
    stop = rng.randint(0, len(again))
    there = again[:stop]
    jobs = wanted(parts, there, others, config)
    assert not {(e.task, e.seed) for e in there} & set(jobs)
    while jobs := wanted(parts, there, others, config):
        there = [*there, *(evaluation(*job, solved=outcomes[job]) for job in jobs)]
    assert {(e.task, e.seed) for e in there} == keys
