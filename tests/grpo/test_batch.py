import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.grpo.batch import build_batch
from selfevolve_jax.rollout.engine import Samples


@st.composite
def rollouts(draw):
    """Prompts of ragged lengths, G samples each, some of them empty; every token is unique."""
    R, M = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    G = draw(st.sampled_from([1, 2, 4, 6]))
    lengths = draw(st.lists(st.integers(0, M), min_size=R * G, max_size=R * G))
    sizes = draw(st.lists(st.integers(1, 5), min_size=R, max_size=R))
    prompts = [[100 * (r + 1) + i for i in range(n)] for r, n in enumerate(sizes)]
    return prompts, make_samples(np.array(lengths, np.int32).reshape(R, G), M)


def make_samples(lengths, M):
    unique = 1000 + np.arange(lengths.size * M, dtype=np.int32).reshape(*lengths.shape, M)
    inside = np.arange(M) < lengths[..., None]
    tokens = np.where(inside, unique, 0).astype(np.int32)
    return Samples(tokens, np.where(inside, -unique, 0).astype(np.float32), lengths, lengths < M)


@settings(max_examples=150)
@given(
    rollout=rollouts(),
    pack=st.booleans(),
    multiple=st.integers(1, 5),
    data=st.data(),
)
def test_every_sampled_token_appears_once_where_it_belongs(rollout, pack, multiple, data):
    prompts, samples = rollout
    R, G, _ = samples.tokens_RxGxM.shape
    K = data.draw(st.sampled_from([k for k in range(1, G + 1) if G % k == 0]))
    batch = build_batch(prompts, samples, row_multiple=multiple, samples_per_segment=K, pack=pack)
    B, T = batch.tokens_BxT.shape
    ids, segments = batch.sequence_ids_BxT, batch.segment_ids_BxT
    assert B % multiple == 0
    assert all(
        getattr(batch, f).shape == (B, T)
        for f in ("positions", "segment_ids_BxT", "branch_ids_BxT", "source_BxT")
    )
    assert (ids >= 0).sum() == samples.lengths_RxG.sum()
    assert (segments[ids >= 0] >= 0).all()

    for i in range(R * G):
        r, g = divmod(i, G)
        n = samples.lengths_RxG[r, g]
        rows, at = np.nonzero(ids == i)
        assert len(set(rows)) <= 1 and len(at) == n  # a sequence is in one row
        if not n:
            continue
        row, size = rows[0], len(prompts[r])
        np.testing.assert_array_equal(batch.tokens_BxT[row, at], samples.tokens_RxGxM[r, g, :n])
        np.testing.assert_array_equal(
            batch.rollout_logprobs_BxT[row, at], samples.logprobs_RxGxM[r, g, :n]
        )
        np.testing.assert_array_equal(batch.positions[row, at], size + np.arange(n))
        np.testing.assert_array_equal(batch.branch_ids_BxT[row, at], g % K + 1)
        segment = segments[row, at[0]]
        assert (segments[row, at] == segment).all()
        # Its prompt is the trunk of the same segment, whole, and before it in the row.
        trunk = np.nonzero((segments[row] == segment) & (batch.branch_ids_BxT[row] == 0))[0]
        assert batch.tokens_BxT[row, trunk].tolist() == prompts[r] and trunk[-1] < at[0]
        np.testing.assert_array_equal(batch.positions[row, trunk], np.arange(size))
        assert (ids[row, trunk] == -1).all()
        # The first token is predicted by the prompt's last one, the others by the one before.
        np.testing.assert_array_equal(
            batch.source_BxT[row, at], [trunk[-1], *at[:-1]], err_msg=f"{i=} {at=}"
        )


@settings(max_examples=60)
@given(rollout=rollouts(), pack=st.booleans())
def test_segments_are_in_one_piece_and_all_else_is_padding(rollout, pack):
    prompts, samples = rollout
    R, G, _ = samples.tokens_RxGxM.shape
    batch = build_batch(prompts, samples, samples_per_segment=G, pack=pack)
    for u in range(R):
        rows, at = np.nonzero(batch.segment_ids_BxT == u)
        assert len(set(rows)) == 1 and at.tolist() == list(range(at[0], at[0] + len(at)))
        assert len(at) == len(prompts[u]) + samples.lengths_RxG[u].sum()
    padding = batch.segment_ids_BxT == -1
    assert (batch.sequence_ids_BxT[padding] == -1).all()
    assert not batch.tokens_BxT[padding].any() and not batch.rollout_logprobs_BxT[padding].any()
    assert (batch.source_BxT >= 0).all() and (batch.source_BxT < batch.tokens_BxT.shape[1]).all()


def test_a_layout_written_out_by_hand():
    """Two samples share a prompt of two; the first of the second prompt's samples is empty."""
    samples = make_samples(np.array([[2, 1], [0, 3]], np.int32), 3)
    prompts = [[7, 8], [9]]
    batch = build_batch(prompts, samples, samples_per_segment=2, pack=True, length=9)
    assert batch.tokens_BxT.tolist() == [[7, 8, 1000, 1001, 1003, 9, 1009, 1010, 1011]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3]]
    assert batch.segment_ids_BxT.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1]]
    assert batch.branch_ids_BxT.tolist() == [[0, 0, 1, 1, 2, 0, 2, 2, 2]]
    assert batch.sequence_ids_BxT.tolist() == [[-1, -1, 0, 0, 1, -1, 3, 3, 3]]
    response = batch.sequence_ids_BxT[0] >= 0
    assert batch.source_BxT[0][response].tolist() == [1, 2, 1, 5, 6, 7]


def test_packing_uses_fewer_rows_and_a_small_set_of_row_counts():
    samples = make_samples(np.full((6, 2), 2, np.int32), 2)
    prompts = [[1, 2]] * 6
    assert build_batch(prompts, samples, length=16).tokens_BxT.shape == (12, 16)
    # Four segments of four tokens fill a row of 16: twelve need three rows.
    assert build_batch(prompts, samples, length=16, pack=True).tokens_BxT.shape == (3, 16)
    padded = build_batch(prompts, samples, length=16, pack=True, row_multiple=8)
    assert padded.tokens_BxT.shape == (8, 16) and (padded.segment_ids_BxT[3:] == -1).all()


@pytest.mark.parametrize("pack", [False, True])
def test_samples_that_are_all_empty_leave_only_prompts(pack):
    batch = build_batch([[1, 2], [3]], make_samples(np.zeros((2, 2), np.int32), 2), pack=pack)
    assert (batch.sequence_ids_BxT == -1).all()
    assert sorted(batch.tokens_BxT[batch.segment_ids_BxT >= 0].tolist()) == [1, 1, 2, 2, 3, 3]
