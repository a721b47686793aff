"""batch_at: one endless stream, read by position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.tasks.base import Row, batch_at


def rows(n):
    return [Row(id=10 + i, prompt=str(i), prompt_tokens=(i,)) for i in range(n)]


def ids(batch):
    return [row.id for row in batch]


@given(
    n=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    start=st.integers(0, 50),
    sizes=st.lists(st.integers(0, 30), max_size=6),
)
def test_batches_of_any_sizes_read_one_stream(n, seed, start, sizes):
    data, position, pieces = rows(n), start, []
    for size in sizes:
        batch = batch_at(data, seed, position, size)
        assert len(batch) == size
        pieces += ids(batch)
        position += size
    one_by_one = [batch_at(data, seed, start + i, 1)[0].id for i in range(sum(sizes))]
    assert pieces == one_by_one == ids(batch_at(data, seed, start, sum(sizes)))


@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_epoch_holds_every_row_once(n, seed, epoch):
    data = rows(n)
    assert sorted(ids(batch_at(data, seed, epoch * n, n))) == ids(data)


def test_epochs_and_seeds_have_orders_of_their_own():
    data = rows(50)
    orders = [ids(batch_at(data, s, e * 50, 50)) for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(order != ids(data) for order in orders)


def test_a_batch_crosses_into_the_next_epoch():
    data = rows(5)
    first, second = batch_at(data, 3, 0, 5), batch_at(data, 3, 5, 5)
    assert ids(batch_at(data, 3, 3, 4)) == ids(first[3:] + second[:2])


def test_a_batch_larger_than_the_data_repeats_rows_evenly():
    batch = ids(batch_at(rows(3), 0, 0, 9))
    assert {i: batch.count(i) for i in batch} == {10: 3, 11: 3, 12: 3}


def test_global_random_state_is_neither_read_nor_moved():
    data = rows(20)
    np.random.seed(0)
    first, state = batch_at(data, 7, 13, 11), np.random.get_state()[1]
    np.random.seed(1)
    assert ids(batch_at(data, 7, 13, 11)) == ids(first)
    np.random.seed(0)
    assert (np.random.get_state()[1] == state).all()


def test_no_rows_are_refused_rather_than_dividing_by_zero():
    with pytest.raises(UserError, match="no rows"):
        batch_at([], 0, 0, 4)
