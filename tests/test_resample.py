"""The online filter and early stopping's rule, by hand."""

import numpy as np
import pytest

from selfevolve_jax.early_stop import EarlyStop, should_stop, waited
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.base import Verdict
from selfevolve_jax.resample import Judged, fill
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.tasks.base import Row


def judged(ids, good):
    """Rows `ids`, two samples each; every array holds its row's id, so that a mix-up shows."""
    of = np.repeat(np.array(ids)[:, None], 2, axis=1)
    trained = of * 0 + np.isin(of, good) > 0
    return Judged(
        [Row(i, f"p{i}", (i,)) for i in ids],
        Samples(of[..., None], of[..., None] * 1.0, of, of > 0),
        [[f"{i}a", f"{i}b"] for i in ids],
        Verdict(
            of.astype(np.float32), trained, [[f"{i}"] * 2 for i in ids], [f"{i}" for i in ids],
            [{f"{i}": 2} for i in ids], np.array(ids, np.float32), timeouts=1, parts={"x": of},
        ),
    )  # fmt: skip


def run(stream, good, size, rounds):
    """(batch, dropped, rounds, rows drawn) over the stream's ids in order."""
    drawn = list(range(size))

    def more(n, round):
        new = stream[len(drawn) : len(drawn) + n]
        drawn.extend(new)
        return judged(new, good)

    return *fill(judged(stream[:size], good), more, rounds), len(drawn)


def ids_of(batch):
    ids = [row.id for row in batch.rows]
    for array in (batch.samples.lengths_RxG, batch.verdict.rewards_RxG, batch.verdict.parts["x"]):
        assert array[:, 0].tolist() == ids
    assert [t[1] for t in batch.texts] == [f"{i}b" for i in ids]
    assert [list(v) for v in batch.verdict.votes] == [[f"{i}"] for i in ids]
    return ids


STREAM = list(range(1, 30))


def test_what_is_left_out_gives_way_in_its_place():
    batch, dropped, rounds, drawn = run(STREAM, good=[1, 3, 6, 7], size=4, rounds=5)
    # 2 and 4 give way to 5 and 6; 5 is no better, and gives way to 7
    assert ids_of(batch) == [1, 7, 3, 6] and ids_of(dropped) == [2, 4, 5]
    assert (rounds, drawn) == (2, 7)
    assert dropped is not None
    assert batch.verdict.trained_RxG.all() and not dropped.verdict.trained_RxG.any()
    assert batch.verdict.timeouts == 3


def test_a_full_batch_draws_nothing_more():
    batch, dropped, rounds, drawn = run(STREAM, good=STREAM, size=4, rounds=5)
    assert ids_of(batch) == [1, 2, 3, 4] and (dropped, rounds, drawn) == (None, 0, 4)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_rounds_are_bounded_and_the_missing_stay_masked(rounds):
    batch, dropped, used, drawn = run(STREAM, good=[1], size=4, rounds=rounds)
    assert used == rounds and drawn == 4 + 3 * rounds and len(batch.rows) == 4
    assert batch.verdict.trained_RxG.any(axis=1).tolist() == [True, False, False, False]
    assert (dropped is None) == (rounds == 0)


def test_patience_counts_evaluations_without_progress():
    assert waited([], 0.0) == 0
    assert [waited([0.5, 0.6, 0.6, 0.59, 0.7][:n], 0.0) for n in range(1, 6)] == [0, 0, 1, 2, 0]
    # small rises add up: 0.52 is no progress over 0.5, 0.54 is
    assert [waited([0.5, 0.52, 0.54][:n], 0.03) for n in range(1, 4)] == [0, 1, 0]
    falling = [0.5, 0.4, 0.3]
    assert should_stop(falling, EarlyStop(2)) and not should_stop(falling, EarlyStop(3))
    assert not should_stop(falling, EarlyStop())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patience": -1}, r"patience=-1"), ({"min_delta": 1.0}, r"min_delta=1\.0")],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(UserError, match=message):
        EarlyStop(**options)
