"""Subsets: stable, in proportion, and never both seen and held out."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.dgm.benchmarks.subset import choose, ordered
from selfevolve_jax.dgm.contract import Task
from selfevolve_jax.errors import UserError


def tasks(**sizes):
    return [Task(f"{g}-{i}", "train", g) for g, n in sizes.items() for i in range(n)]


ALL = tasks(a=40, b=20, c=4)


@given(st.permutations(ALL), st.integers(0, 5))
def test_the_order_of_the_source_does_not_matter(shuffled, seed):
    assert choose(shuffled, 10, 5, seed) == choose(ALL, 10, 5, seed)


@given(st.integers(0, 200), st.integers(1, 32), st.integers(0, 32))
def test_what_is_trained_on_is_never_held_out(seed, train, held_out):
    chosen = choose(ALL, train, held_out, seed)
    splits = Counter(t.split for t in chosen)
    assert splits["train"] == train and splits["held_out"] == held_out
    assert len({t.id for t in chosen}) == train + held_out


@given(st.integers(0, 200), st.integers(0, 32))
def test_more_tasks_begin_with_the_fewer(seed, held_out):
    """So a later stage's tasks contain an earlier one's, and what is held out changes nothing of it."""
    few, many = choose(ALL, 10, held_out, seed), choose(ALL, 30, 0, seed)
    assert few[:10] == many[:10]


@given(st.integers(0, 200), st.integers(0, 40), st.integers(8, 24))
def test_every_stretch_has_the_groups_in_proportion(seed, start, length):
    """40 : 20 : 4 of 64 along equal steps: a stretch of n has n·40/64 of a, to within one step of each
    group (hand-made bound: the count of a group in a window of width w is w·size ± 1, and the window's
    own width is uncertain by the other groups' ± 1)."""
    stretch = Counter(t.group for t in ordered(ALL, seed)[start : start + length])
    for group, size in (("a", 40), ("b", 20), ("c", 4)):
        assert abs(stretch[group] - length * size / 64) < 3


def test_seeds_draw_different_tasks_and_every_task_gets_its_turn():
    seen = Counter(t.id for seed in range(400) for t in choose(ALL, 16, 0, seed))
    assert len(seen) == 64
    # 16 of 64: each has a chance of 1/4, 100 of 400; five standard deviations are 43.
    assert all(57 < n < 143 for n in seen.values())


def test_what_cannot_be_used_gives_its_place_to_the_next():
    bad = {t.id for t in choose(ALL, 5, 0, 3)[1:3]}
    asked = []

    def usable(task):
        asked.append(task.id)
        return task.id not in bad

    chosen = choose(ALL, 5, 2, 3, usable)
    assert [t.id for t in chosen] == [t.id for t in ordered(ALL, 3)[:9] if t.id not in bad]
    assert len(asked) == 9  # and no more than are needed


@pytest.mark.parametrize(
    "train, held_out, message",
    [(0, 1, "train=0"), (1, -1, "held_out=-1"), (60, 5, "65 tasks, and 64 of 64")],
)
def test_what_cannot_be_had_is_said(train, held_out, message):
    with pytest.raises(UserError, match=message):
        choose(ALL, train, held_out, 0)
    with pytest.raises(UserError, match="same id"):
        choose([*ALL, ALL[0]], 1, 0, 0)
