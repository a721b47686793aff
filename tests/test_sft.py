from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import decoder
from models.shared import unconstrained
from selfevolve_jax.sft import packed_batch, supervised_batch, supervised_step, train
from selfevolve_jax.state import init_params, init_state

ROWS = [([3, 1], [([], [4, 1, 5])]), ([9, 2, 6, 5], [([], [3])]), ([5], [([], [8, 9, 7, 9])])]
ROWS.append(([3], [([2, 3], [8, 4])]))
LENGTH = 8
ADAM = optax.adam(1e-2)


@pytest.fixture(scope="module")
def weights(tiny, mesh1):
    return jax.device_get(init_params(tiny, jax.random.key(0), mesh1))


@pytest.fixture
def state(tiny, mesh1, weights):
    return init_state(weights, tiny, ADAM, mesh1)


def step(state, batch, tiny, accumulate=1):
    # The chunk that `train` uses, so that the two share a compilation.
    return supervised_step(state, batch, tiny, ADAM, accumulate, 256, unconstrained)


def test_the_layout_written_out_by_hand():
    batch = supervised_batch([([3, 1], [([4], [5, 6]), ([], [7])]), ([7], [([], [8])])], 7)
    assert batch.tokens_BxT.tolist() == [[3, 1, 4, 5, 6, 7, 0], [7, 8, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 2, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert batch.segment_ids_BxT.tolist() == [[0] * 6 + [-1], [1, 1] + [-1] * 5]
    assert batch.branch_ids_BxT.tolist() == [[0, 0, 1, 1, 1, 2, 0], [0, 1, 0, 0, 0, 0, 0]]
    assert batch.sequence_ids_BxT.tolist() == [[-1, -1, -1, 0, 0, 1, -1], [-1, 2] + [-1] * 5]
    response = batch.sequence_ids_BxT >= 0
    assert batch.source_BxT[response].tolist() == [2, 3, 1, 0]


def test_pairs_that_share_a_prompt_have_the_loss_of_rows_of_their_own(state, tiny, mesh1, weights):
    pairs = [([4], [5, 6]), ([], [7, 2, 9]), ([8, 8], [1])]
    shared = supervised_batch([([3, 1], pairs)], 12)
    alone = supervised_batch([([3, 1], [pair]) for pair in pairs], 12)
    _, a = step(state, shared, tiny)
    _, b = step(init_state(weights, tiny, ADAM, mesh1), alone, tiny)
    np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(a["train/grad_norm"], b["train/grad_norm"], rtol=1e-4)


def test_packed_rows_written_out_by_hand():
    """The longest first; of the others, those that fit go beside it. Two rows, as pack is 2."""
    rows = [([3], [([], [8])]), ([3, 1], [([4], [5, 6]), ([], [7])]), ([7], [([2], [8])])]
    batch = supervised_batch(rows, 8, pack=2, few=True)
    assert batch.tokens_BxT.tolist() == [[3, 1, 4, 5, 6, 7, 3, 8], [7, 2, 8, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1], [0, 1, 2, 0, 0, 0, 0, 0]]
    assert batch.segment_ids_BxT.tolist() == [[1] * 6 + [0] * 2, [2] * 3 + [-1] * 5]
    assert batch.branch_ids_BxT.tolist() == [[0, 0, 1, 1, 1, 2, 0, 1], [0, 1, 1, 0, 0, 0, 0, 0]]
    assert batch.sequence_ids_BxT[0].tolist() == [-1, -1, -1, 1, 1, 2, -1, 0]
    response = batch.sequence_ids_BxT >= 0
    assert batch.source_BxT[response].tolist() == [2, 3, 1, 6, 1]
    assert batch.scored_BxR.tolist() == [[3, 4, 5, 7], [2, -1, -1, -1]]
    with pytest.raises(ValueError, match="a row has 6 tokens, and the batch rows of 5"):
        supervised_batch(rows, 5)


def test_a_row_that_is_mostly_response_is_scored_as_a_whole():
    rows = [([3], [([], [8, 9, 7])]), ([1, 2], [([], [5])])]
    assert supervised_batch(rows, 5, few=True).scored_BxR is None
    assert supervised_batch(rows, 6, few=True).scored_BxR.tolist() == [[1, 2, 3], [2, -1, -1]]
    assert supervised_batch(rows, 6).scored_BxR is None


def test_packing_and_scoring_less_change_no_number(state, tiny, mesh1, weights):
    apart = supervised_batch(ROWS, 16, few=True)
    assert apart.scored_BxR.shape == (4, 8)
    whole = replace(apart, scored_BxR=None)
    packed = supervised_batch(ROWS, 16, pack=1, few=True)
    assert packed.tokens_BxT.shape == (2, 16)  # 21 tokens
    moved, a = step(state, whole, tiny)
    for batch in (apart, packed):
        other, b = step(init_state(weights, tiny, ADAM, mesh1), batch, tiny)
        np.testing.assert_allclose(b["train/loss"], a["train/loss"], rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
            moved.opt_state[0].mu,
            other.opt_state[0].mu,
        )


def test_packed_batches_have_few_shapes_that_divide_into_pieces():
    rows = [([3] * 60, [([], [8, 4])])] * 16  # four in a row of 256 tokens

    def shape(n, size, pieces):
        return packed_batch(rows[:n], size, pieces).tokens_BxT.shape

    assert {shape(n, 16, 1) for n in range(5, 17)} == {(4, 256)}
    assert [shape(16, 16, pieces)[0] for pieces in (1, 2, 8, 16)] == [4, 4, 8, 16]
    # Where rows have to be as many all the same, none share one.
    segments = packed_batch(rows, 16, 16).segment_ids_BxT
    assert (segments.max(axis=1) == np.arange(16)).all() and (segments[:, 62:] == -1).all()
    assert shape(3, 16, 16) == (16, 256)
    assert shape(2, 2, 1) == (2, 256)
    longer = [*rows[:11], ([3] * 300, [([], [8])])]  # beside which another fits
    assert packed_batch(longer, 16, 1).tokens_BxT.shape == (4, 384)


def test_the_loss_is_the_mean_negative_log_likelihood_of_response_tokens(state, tiny, weights):
    _, metrics = step(state, supervised_batch(ROWS, LENGTH), tiny)

    @jax.jit
    def scores(weights, tokens, segment):
        at = jnp.arange(LENGTH)[None]
        hidden = decoder.forward(weights, tokens, at, segment, jnp.zeros_like(at), tiny)
        return jax.nn.log_softmax(decoder.logits(weights, hidden, tiny))[0]

    total = []
    for prompt, [(more, answer)] in ROWS:
        text = [*prompt, *more, *answer]
        padded = np.array([text + [0] * (LENGTH - len(text))], np.int32)
        segment = np.where(np.arange(LENGTH) < len(text), 0, -1)[None]
        logp = np.asarray(scores(weights, padded, segment))
        total += [-logp[t - 1, text[t]] for t in range(len(text) - len(answer), len(text))]
    assert len(total) == 10
    np.testing.assert_allclose(metrics["train/loss"], np.mean(total), rtol=1e-5)


def test_accumulation_does_not_change_the_numbers(state, tiny, mesh1, weights):
    batch = supervised_batch(ROWS, LENGTH)
    whole, a = step(state, batch, tiny)
    parts, b = step(init_state(weights, tiny, ADAM, mesh1), batch, tiny, accumulate=2)
    np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-6)
    np.testing.assert_allclose(a["train/grad_norm"], b["train/grad_norm"], rtol=1e-5)
    # Adam's first moment is a tenth of the gradient.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-7),
        whole.opt_state[0].mu,
        parts.opt_state[0].mu,
    )
    assert whole.step == parts.step == 1


def test_a_tiny_mapping_is_learnt(state, tiny):
    batch = supervised_batch(ROWS, LENGTH)
    state, loss = train(state, [batch] * 30, tiny, ADAM, unconstrained)
    assert loss < 0.2 < 2 < np.log(16)  # from about ln 16, which is 2.8
    assert state.step == 30


def test_no_batch_is_no_training(state, tiny, weights):
    state, loss = train(state, [], tiny, ADAM, unconstrained)
    assert np.isnan(loss) and state.step == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), weights)
