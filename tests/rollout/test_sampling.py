"""Filters against a plain numpy reading of their definitions, and draws against their frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfevolve_jax import compiles
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.sampling import (
    Sampling,
    check_sampling,
    draw,
    sample,
    sampling_scores,
    token_stats,
    top_tokens,
)

V = 12


def sampling_logprobs(logits, sampling):
    return jax.nn.log_softmax(sampling_scores(logits, sampling), axis=-1)


_jitted = jax.jit(sampling_logprobs)


def logprobs(logits, **values):
    rows = np.zeros((2, V), np.float32)  # one compiled shape; the second row must not matter
    rows[0, : len(logits)], rows[0, len(logits) :] = logits, -1e9
    return np.asarray(_jitted(rows, Sampling(**values)))[0, : len(logits)]


def reference(logits, temperature, top_k, top_p, min_p):
    """float64 log-probs, and how close any comparison came to going the other way."""
    scores = np.asarray(logits, np.float64) / temperature
    kept = sorted(scores, reverse=True)[: top_k or None]
    probs = np.exp(np.array(kept) - kept[0])
    probs /= probs.sum()
    margins, last, before = [1.0], kept[0], 0.0
    for score, p in zip(kept, probs, strict=True):
        if top_p < 1:
            margins.append(abs(before - top_p))
        if min_p > 0:
            margins.append(abs(p / probs[0] - min_p))
        if (before < top_p or top_p >= 1) and p >= min_p * probs[0]:
            last = score
        before += p
    stays = scores >= last
    weights = np.where(stays, np.exp(scores - scores.max()), 0.0)
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.sum()), min(margins)


score_lists = st.one_of(
    # Without subnormal numbers, which XLA takes for zero on a CPU and numpy does not.
    st.lists(st.floats(-8, 8, width=32, allow_subnormal=False), min_size=V, max_size=V),
    st.lists(st.integers(-4, 4).map(float), min_size=V, max_size=V),  # many ties
)


@settings(max_examples=200)
@given(
    logits=score_lists,
    temperature=st.floats(0.1, 4.0),
    top_k=st.one_of(st.just(0), st.integers(0, V + 2)),
    top_p=st.one_of(st.just(1.0), st.floats(0.02, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 0.95)),
)
def test_any_combination_is_what_numpy_gives(logits, temperature, top_k, top_p, min_p):
    want, margin = reference(logits, temperature, top_k, top_p, min_p)
    assume(margin > 1e-5)
    got = logprobs(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert np.array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.exp(got, dtype=np.float64).sum() == pytest.approx(1, abs=1e-5)


LOGITS = np.log([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("values", "probs"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
        # The smallest set that reaches top_p: .4 does not reach .6, .4 + .3 does.
        ({"top_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        # Half of the best is .2: a little under it stays.
        ({"min_p": 0.499}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        # T = 1/2 squares: .16, .09, .04, .01 of .3; top-p acts on these.
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.5, "top_p": 0.5}, [1, 0, 0, 0]),
        # After top-k 3 the first holds 4/9 and two hold 7/9: .75 needs both; without top-k, three.
        ({"top_k": 3, "top_p": 0.75}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 0.95, "min_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),
        ({"temperature": 0.0, "top_k": 3, "top_p": 0.5}, [1, 0, 0, 0]),
    ],
)
def test_by_hand(values, probs):
    np.testing.assert_allclose(np.exp(logprobs(LOGITS, **values)), probs, atol=1e-6)


def test_ties_with_the_last_kept_score_stay():
    np.testing.assert_allclose(
        np.exp(logprobs([2.0, 1.0, 1.0, 0.0], top_k=2)) > 0, [True, True, True, False]
    )
    equal = logprobs([1.0] * V, top_k=1)
    np.testing.assert_allclose(np.exp(equal), 1 / V, rtol=1e-6)


def test_greedy_gives_all_to_the_first_best():
    got = logprobs([0.0, 3.0, 3.0, 1.0], temperature=0.0)
    assert got.tolist() == [-np.inf, 0.0, -np.inf, -np.inf]


def test_filters_that_are_off_change_no_bit():
    """Also where the cumulative sum of the probabilities rounds to 1 long before the last token."""
    logits = np.concatenate([[30.0, 29.0], np.linspace(-40, -10, V - 2)])
    plain = logprobs(logits)
    assert np.isfinite(plain).all()
    assert np.array_equal(plain, np.asarray(jax.nn.log_softmax(jnp.asarray(logits, "f4"))))
    # top_k = V sends it through the filters, none of which may cut.
    assert np.isfinite(logprobs(logits, top_k=V, top_p=1.0, min_p=0.0)).all()


def test_every_row_is_filtered_by_itself():
    rows = np.stack([np.arange(V), -2.0 * np.arange(V)]).astype(np.float32)
    got = np.asarray(_jitted(rows, Sampling(top_p=0.9)))
    for row, want in zip(got, (reference(r, 1.0, 0, 0.9, 0.0)[0] for r in rows), strict=True):
        np.testing.assert_allclose(row, want, atol=1e-5)


def test_bfloat16_scores_are_normalised_in_float32():
    rows = jnp.asarray(np.linspace(0, 3, V)[None], jnp.bfloat16)
    got = sampling_logprobs(rows, Sampling())
    assert got.dtype == jnp.float32
    assert float(jnp.exp(got).sum()) == pytest.approx(1, abs=1e-6)


def test_another_value_compiles_nothing():
    logprobs(LOGITS)
    with compiles.count() as compiled:
        for t, p, k, m in [(0.0, 1.0, 0, 0.0), (0.7, 0.9, 3, 0.1), (2.0, 0.2, 0, 0.9)]:
            logprobs(LOGITS, temperature=t, top_p=p, top_k=k, min_p=m)
    assert compiled() == 0


def test_draws_come_with_the_frequencies_of_the_distribution():
    n = 20_000
    probs = np.array([0.5, 0.0, 0.25, 0.15, 0.0, 0.1])
    with np.errstate(divide="ignore"):
        rows = np.broadcast_to(np.log(probs).astype(np.float32), (n, 6))
    tokens, logprob = jax.jit(draw)(rows, jax.random.split(jax.random.key(0), n))
    tokens = np.asarray(tokens)
    np.testing.assert_allclose(np.asarray(logprob), rows[0][tokens], atol=1e-6)
    counts, expected = np.bincount(tokens, minlength=6), n * probs
    assert counts[probs == 0].sum() == 0
    there = probs > 0
    chi2 = ((counts - expected)[there] ** 2 / expected[there]).sum()
    assert chi2 < 21.1  # 3 degrees of freedom: exceeded once in 10,000


WIDE = 5000  # large enough for the draw by blocks of 256, and no multiple of them


def wide(probs):
    with np.errstate(divide="ignore"):
        return np.log(np.bincount(list(probs), list(probs.values()), WIDE)).astype(np.float32)


def test_a_large_vocabulary_has_the_frequencies_of_its_distribution_too():
    n = 8000
    rest = dict.fromkeys(range(1000, 2000), 0.2 / 1000)
    probs = {0: 0.1, 255: 0.2, 256: 0.1, 300: 0.15, 4999: 0.25} | rest
    keys = jax.random.split(jax.random.key(0), n).reshape(8, -1)
    row = jnp.asarray(wide(probs))
    many = jax.jit(lambda keys: draw(jnp.broadcast_to(row, (len(keys), WIDE)), keys))
    tokens, logprob = (np.concatenate(x) for x in zip(*map(many, keys), strict=True))
    np.testing.assert_allclose(logprob, np.asarray(row)[tokens], atol=1e-6)  # −inf would not be
    few = {0: 0.1, 255: 0.2, 256: 0.1, 300: 0.15, 4999: 0.25}
    counts = np.array([(tokens == t).sum() for t in few] + [np.isin(tokens, list(rest)).sum()])
    expected = n * np.array([*few.values(), 0.2])
    assert ((counts - expected) ** 2 / expected).sum() < 25.8  # 5 degrees: once in 10,000
    # 1,600 draws from 1,000: e^-1.6 of them are missed.
    assert len(np.unique(tokens[np.isin(tokens, list(rest))])) == pytest.approx(798, abs=50)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-23])
def test_no_random_number_draws_what_has_no_probability(monkeypatch, u):
    rng = np.random.default_rng(0)
    rows = np.stack([wide({i: rng.random() for i in rng.choice(WIDE, 7)}) for _ in range(20)])
    rows = np.concatenate([rows, wide({700: 1.0})[None]])
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, u, jnp.float32))
    tokens, logprob = draw(rows, jax.random.split(jax.random.key(0), len(rows)))
    assert np.isfinite(logprob).all()
    first = np.array([np.flatnonzero(np.isfinite(row))[0] for row in rows])
    last = np.array([np.flatnonzero(np.isfinite(row))[-1] for row in rows])
    if u == 0.0:
        np.testing.assert_array_equal(tokens, first)
    if u > 0.9:
        np.testing.assert_array_equal(tokens, last)
    assert tokens[-1] == 700


@pytest.mark.parametrize("size", [V, WIDE])
@pytest.mark.parametrize(
    "values", [{}, {"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}]
)
def test_a_sample_comes_with_its_logprob_in_what_is_sampled_from(size, values):
    """Of scores far from normalised, with the settings of all rows and of each row."""
    rows = np.random.default_rng(0).normal(30, 4, (40, size)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), len(rows))
    want = np.asarray(sampling_logprobs(jnp.asarray(rows), Sampling(**values)))
    tokens, logprob = jax.jit(sample)(rows, Sampling(**values), keys)
    np.testing.assert_allclose(logprob, want[np.arange(40), tokens], atol=1e-5)
    others = Sampling(**values)
    own = Sampling(
        *(
            np.where(np.arange(40)[:, None] < 20, getattr(others, f), getattr(Sampling(), f))
            for f in ("temperature", "top_p", "top_k", "min_p")
        )
    )
    mixed, _ = jax.jit(sample)(rows, own, keys)
    np.testing.assert_array_equal(mixed[:20], tokens[:20])


@pytest.mark.parametrize("size", [V, WIDE])
def test_a_draw_depends_on_its_own_key_and_row_alone(size):
    rows = np.log(np.random.default_rng(0).dirichlet(np.ones(size), 8)).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 8)
    tokens = np.asarray(draw(rows, keys)[0])
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_array_equal(np.asarray(draw(rows[order], keys[order])[0]), tokens[order])


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("temperature", -0.1, 0.0),
        ("top_p", 0.0, 1.0),
        ("top_p", 1.01, 0.01),
        ("top_k", -1, 0),
        ("min_p", -0.1, 0.0),
        ("min_p", 1.0, 0.99),
        ("temperature", float("nan"), 2.0),
    ],
)
def test_values_out_of_range_are_refused_by_name(name, bad, good):
    check_sampling(Sampling(**{name: good}))
    with pytest.raises(UserError, match=rf"sampling\.{name}={bad}"):
        check_sampling(Sampling(**{name: bad}))


# Statistics of the whole distribution.


def test_entropy_and_certainty_by_hand():
    p = np.array([0.5, 0.25, 0.25])
    rows = np.stack(
        [np.log(p) + 7, np.zeros(3), [60.0, 0.0, 0.0]]
    )  # a shift of scores is no matter
    entropy, certainty = token_stats(jnp.asarray(rows, jnp.float32), Sampling())
    assert entropy.dtype == certainty.dtype == jnp.float32
    np.testing.assert_allclose(entropy, [1.5 * np.log(2), np.log(3), 0], atol=1e-6)
    # logsumexp(z) - mean(z): 0 - mean(log p); log 3 when uniform; 60 - 20 when sure.
    np.testing.assert_allclose(certainty, [5 / 3 * np.log(2), np.log(3), 40], rtol=1e-6)


def test_certainty_is_the_divergence_from_uniform_up_to_log_v():
    rows = np.random.default_rng(0).normal(0, 3, (50, V))
    p = np.exp(rows - rows.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    _, certainty = token_stats(jnp.asarray(rows, jnp.float32), Sampling())
    divergence = (np.log(1 / V / p) / V).sum(-1)
    np.testing.assert_allclose(certainty, divergence + np.log(V), rtol=1e-5)
    assert float(certainty.min()) >= np.log(V)


def test_statistics_know_the_temperature_and_no_filter():
    rows = jnp.asarray(np.random.default_rng(1).normal(0, 2, (20, V)), jnp.float32)
    cut = token_stats(rows, Sampling(temperature=0.5, top_k=2, top_p=0.3, min_p=0.9))
    for got, want in zip(cut, token_stats(rows * 2, Sampling()), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    greedy = token_stats(rows, Sampling(temperature=0.0))
    for got, want in zip(greedy, token_stats(rows, Sampling()), strict=True):
        np.testing.assert_array_equal(got, want)


def test_each_row_may_have_its_own_values():
    """Greedy, plain and filtered rows beside each other are what they are alone, bit for bit."""
    kinds = [
        Sampling(0.0),
        Sampling(),
        Sampling(0.5),
        Sampling(1.3, 0.8),
        Sampling(0.7, 1.0, 3),
        Sampling(1.0, 0.9, 9, 0.2),
        Sampling(0.0, 0.5, 2),
    ]
    rows = np.random.default_rng(0).normal(0, 2, (len(kinds), V)).astype(np.float32)
    names = ("temperature", "top_p", "top_k", "min_p")
    own = Sampling(*(np.asarray([[getattr(k, name)] for k in kinds]) for name in names))
    got = np.asarray(sampling_logprobs(jnp.asarray(rows), own))
    for i, kind in enumerate(kinds):
        np.testing.assert_array_equal(got[i], sampling_logprobs(jnp.asarray(rows), kind)[i])


def test_the_models_own_logprobs_are_of_the_unfiltered_scores():
    rows = np.random.default_rng(1).normal(0, 2, (3, V)).astype(np.float32)
    tokens = np.asarray([0, 5, 11])
    drawn, ids, best = top_tokens(jnp.asarray(rows), jnp.asarray(tokens), 4)
    want = rows - np.log(np.exp(rows.astype(np.float64)).sum(-1, keepdims=True))
    order = np.argsort(-want)[:, :4]
    np.testing.assert_allclose(drawn, want[np.arange(3), tokens], atol=1e-6)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(best, np.take_along_axis(want, order, 1), atol=1e-6)
