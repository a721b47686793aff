"""The rollout engine against the trainer's log-probs, against itself in every other arrangement, and
against a loop without a cache.

Shapes are shared on purpose: prompts of up to 17 tokens prefill in a bucket of 16, and 15 new tokens
need caches of 24 and then 32. Compiling is nearly all of what these tests take.
"""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from models.params import initialise
from models.shared import unconstrained
from selfevolve_jax import compiles, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import build_batch
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.rollout import decoding, engine
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling

G, M, V = 4, 15, 16
STOP = (3, 11)
NEVER = (98, 99)  # outside the vocabulary: the same shapes, and no sample ends before the limit
LENGTHS = (1, 2, 5, 16, 17, 9)
KEY = jax.random.key(5)

_rng = np.random.default_rng(0)
PROMPTS = [_rng.integers(0, V, n).tolist() for n in LENGTHS]
IDS = [40, 7, 0, 3, 12, 1000]


@pytest.fixture(scope="module")
def params(tiny):
    return jax.jit(lambda key: initialise(decoder.abstract_params(tiny), key))(jax.random.key(0))


@pytest.fixture(scope="module")
def run(params, tiny, mesh1):
    def generate(prompts=PROMPTS, ids=IDS, samples=G, sampling=Sampling(), **options):  # noqa: B008
        options = {"slots": 8, "chunk": 8, "limit": M, "stop": STOP, "key": KEY} | options
        return engine.generate(
            options.get("params", params),
            prompts,
            ids,
            samples,
            options["key"],
            sampling,
            max_new_tokens=options["limit"],
            stop_tokens=options["stop"],
            cfg=options.get("cfg", tiny),
            mesh=options.get("mesh", mesh1),
            config=RolloutConfig(options["slots"], options["chunk"]),
            stats=options.get("stats", False),
        )

    return generate


@pytest.fixture(scope="module")
def reference(run):
    """Every sample with a slot of its own from the start, and all tokens in one chunk."""
    return run(slots=64, chunk=64)


def check_form(samples, stop, limit):
    """What `Samples` promises of every sample."""
    at = np.arange(samples.tokens_RxGxM.shape[-1])
    inside = at < samples.lengths_RxG[..., None]
    assert samples.tokens_RxGxM.shape[-1] == limit
    assert (samples.lengths_RxG >= 1).all() and (samples.lengths_RxG <= limit).all()
    assert (samples.tokens_RxGxM[~inside] == 0).all()
    assert (samples.logprobs_RxGxM[~inside] == 0).all()
    assert (samples.logprobs_RxGxM[inside] <= 0).all()
    assert np.isfinite(samples.logprobs_RxGxM).all()
    is_stop = np.isin(samples.tokens_RxGxM, stop) & inside
    last = at == samples.lengths_RxG[..., None] - 1
    assert not (is_stop & ~last).any()  # nothing is drawn after a stop token
    np.testing.assert_array_equal((is_stop & last).any(-1), samples.stopped_RxG)
    assert (samples.lengths_RxG[~samples.stopped_RxG] == limit).all()
    for name in ("tokens_RxGxM", "lengths_RxG"):
        assert getattr(samples, name).dtype == np.int32
    assert samples.logprobs_RxGxM.dtype == np.float32 and samples.stopped_RxG.dtype == bool
    assert samples.entropy_RxGxM is None and samples.certainty_RxGxM is None


def assert_same(got, want):
    np.testing.assert_array_equal(got.tokens_RxGxM, want.tokens_RxGxM)
    np.testing.assert_array_equal(got.lengths_RxG, want.lengths_RxG)
    np.testing.assert_array_equal(got.stopped_RxG, want.stopped_RxG)
    np.testing.assert_allclose(got.logprobs_RxGxM, want.logprobs_RxGxM, rtol=0, atol=1e-5)


def pick(samples, rows, first=0, count=None):
    here = slice(first, None if count is None else first + count)
    return engine.Samples(
        *(
            getattr(samples, f)[rows][:, here]
            for f in ("tokens_RxGxM", "logprobs_RxGxM", "lengths_RxG", "stopped_RxG")
        )
    )


# The gap between sampler and trainer.


def direct_scores(params, cfg, prompts, samples):
    """float64 scores [R, G, M, V] before temperature: each text alone in a row, no cache, packing or
    shared prompt."""
    R, n, width = *samples.lengths_RxG.shape, 32
    tokens = np.zeros((R * n, width), np.int32)
    for i in range(R * n):
        r, g = divmod(i, n)
        text = [*prompts[r], *samples.tokens_RxGxM[r, g, : samples.lengths_RxG[r, g]]]
        tokens[i, : len(text)] = text
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    zeros = np.zeros_like(tokens)
    scores = np.asarray(_direct(params, tokens, positions, zeros, zeros, cfg), np.float64)
    starts = np.repeat([len(p) - 1 for p in prompts], n)
    at = np.minimum(starts[:, None] + np.arange(samples.tokens_RxGxM.shape[-1]), width - 1)
    return np.take_along_axis(scores, at[..., None], 1).reshape(R, n, -1, scores.shape[-1])


@jax.jit(static_argnames="cfg")
def _direct(params, tokens, positions, segments, branches, cfg):
    hidden = decoder.forward(params, tokens, positions, segments, branches, cfg)
    return decoder.logits(params, hidden, cfg)


def log_softmax(scores):
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def at_tokens(logprobs_RxGxMxV, samples):
    """The log-prob of each drawn token, 0 beyond the lengths."""
    chosen = np.take_along_axis(logprobs_RxGxMxV, samples.tokens_RxGxM[..., None], -1)[..., 0]
    inside = np.arange(chosen.shape[-1]) < samples.lengths_RxG[..., None]
    return np.where(inside, chosen, 0.0)


_trainer = jax.jit(token_logprobs, static_argnames=("cfg", "chunk", "constrain"))

# One text a row with rows of padding; shared prompts; and both packed, at the same length of row.
LAYOUTS = {
    "one a row, padded": {"length": 96, "row_multiple": 25},
    "packed": {"length": 96, "pack": True, "row_multiple": 25},
    "packed pairs that share a prompt": {
        "length": 96,
        "pack": True,
        "row_multiple": 25,
        "samples_per_segment": 2,
    },
    "packed groups that share a prompt": {
        "length": 96,
        "pack": True,
        "row_multiple": 25,
        "samples_per_segment": 4,
    },
}


def trainer_gap(samples, batch, params, temperature, cfg, constrain=unconstrained):
    """The largest difference, after checking that every drawn token is in the batch once."""
    ids = np.asarray(batch.sequence_ids_BxT)
    counts = np.bincount(ids[ids >= 0], minlength=samples.lengths_RxG.size)
    np.testing.assert_array_equal(counts, samples.lengths_RxG.reshape(-1))
    got, _ = _trainer(params, batch, jnp.float32(temperature), cfg, 40, constrain)
    got = np.asarray(got)
    for i in range(samples.lengths_RxG.size):
        r, g = divmod(i, samples.lengths_RxG.shape[1])
        size, here = samples.lengths_RxG[r, g], ids == i
        drawn, drawn_logprobs = samples.tokens_RxGxM[r, g], samples.logprobs_RxGxM[r, g]
        np.testing.assert_array_equal(np.asarray(batch.tokens_BxT)[here], drawn[:size])
        rollout = np.asarray(batch.rollout_logprobs_BxT)[here]
        np.testing.assert_array_equal(rollout, drawn_logprobs[:size])
    assert (got[ids < 0] == 0).all()
    return float(np.abs(got - np.asarray(batch.rollout_logprobs_BxT)).max())


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_recorded_logprobs_are_the_trainers(run, params, tiny, temperature):
    samples = run(sampling=Sampling(temperature=temperature))
    check_form(samples, STOP, M)
    assert len(set(samples.lengths_RxG.flat)) > 5  # ragged indeed
    gaps = {}
    for name, layout in LAYOUTS.items():
        batch = build_batch(PROMPTS, samples, **layout)
        assert batch.tokens_BxT.shape == (25, 96)
        rows = (batch.segment_ids_BxT >= 0).any(1).sum()
        assert rows == 24 if "one" in name else rows < 10
        gaps[name] = trainer_gap(samples, batch, params, temperature, tiny)
    scores = direct_scores(params, tiny, PROMPTS, samples)
    want = at_tokens(log_softmax(scores / temperature), samples)
    gaps["direct, no cache"] = float(np.abs(samples.logprobs_RxGxM - want).max())
    print(f"T={temperature}: " + "; ".join(f"{name} {gap:.2e}" for name, gap in gaps.items()))
    assert max(gaps.values()) < 1e-5
    # The proof would notice a temperature that was forgotten.
    if temperature != 1.0:
        assert trainer_gap(samples, batch, params, 1.0, tiny) > 1e-2


def test_recorded_logprobs_are_the_trainers_on_a_mesh(run, params, tiny, mesh8, reference):
    """Rollout and trainer both under data 2 × fsdp 2 × tensor 2; and the samples are those of one
    device. Four slots for 24 samples."""
    specs = sharding.tree_shardings(decoder.abstract_params(tiny), mesh8)
    placed = jax.device_put(params, specs)
    samples = run(params=placed, mesh=mesh8, slots=4)
    assert_same(samples, reference)
    layout = {"length": 96, "pack": True, "samples_per_segment": 2, "row_multiple": 4}
    batch = sharding.put_batch(build_batch(PROMPTS, samples, **layout), mesh8)
    gap = trainer_gap(samples, batch, placed, 1.0, tiny, sharding.constrainer(mesh8))
    between = np.abs(samples.logprobs_RxGxM - reference.logprobs_RxGxM).max()
    print(f"mesh8: trainer gap {gap:.2e}; rollout to one device {between:.2e}")
    assert gap < 1e-5


def filtered(scores, top_k=0, top_p=1.0, min_p=0.0):
    """Plain numpy: sort, cut, renormalise; scores have no ties."""
    out = np.full(scores.shape, -np.inf)
    for at in np.ndindex(scores.shape[:-1]):
        order = np.argsort(-scores[at])[: top_k or None]
        probs = np.exp(scores[at][order] - scores[at].max())
        probs /= probs.sum()
        before = np.cumsum(probs) - probs
        keep = order[(before < top_p) & (probs >= min_p * probs[0])]
        out[at][keep] = log_softmax(scores[at][keep])
    return out


@pytest.mark.parametrize(
    "filters", [{"top_p": 0.8}, {"top_k": 3}, {"min_p": 0.3}, {"top_k": 9, "top_p": 0.9}]
)
def test_filtered_logprobs_are_of_the_renormalised_distribution(run, params, tiny, filters):
    samples = run(sampling=Sampling(temperature=1.3, **filters))
    check_form(samples, STOP, M)
    scores = direct_scores(params, tiny, PROMPTS, samples) / 1.3
    want = at_tokens(filtered(scores, **filters), samples)
    gap = np.abs(samples.logprobs_RxGxM - want).max()
    print(f"{filters}: max gap {gap:.2e}")
    assert gap < 1e-5
    # And it is not the unfiltered distribution that was recorded.
    unfiltered = at_tokens(log_softmax(scores), samples)
    assert (samples.logprobs_RxGxM - unfiltered).max() > 0.1


# Statistics of each token's distribution, from the same pass.

STATS = ("entropy_RxGxM", "certainty_RxGxM")


def direct_stats(params, cfg, samples, temperature):
    """float64 entropy and logsumexp(z) - mean(z) of every token, 0 beyond the lengths."""
    logprobs = log_softmax(direct_scores(params, cfg, PROMPTS, samples) / temperature)
    inside = np.arange(M) < samples.lengths_RxG[..., None]
    entropy = -(np.exp(logprobs) * logprobs).sum(-1)
    return [np.where(inside, x, 0.0) for x in (entropy, -logprobs.mean(-1))]


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        (Sampling(), {"slots": 64, "chunk": 64}),
        (Sampling(temperature=0.7, top_k=3, top_p=0.9), {"slots": 4, "chunk": 3}),
    ],
    ids=["at once", "few slots, filtered"],
)
def test_statistics_are_those_of_the_trainers_scores(run, params, tiny, sampling, options):
    """Through admission, growth and compaction; and asking for them changes no sample."""
    got = run(sampling=sampling, stats=True, **options)
    for name, want in zip(
        STATS, direct_stats(params, tiny, got, sampling.temperature), strict=True
    ):
        array = getattr(got, name)
        assert array.dtype == np.float32 and array.shape == got.tokens_RxGxM.shape
        assert np.abs(array - want).max() < 1e-5, name
        print(name, f"{np.abs(array - want).max():.2e}")
        # Beyond a sample's end nothing is recorded.
        assert (array[np.arange(M) >= got.lengths_RxG[..., None]] == 0).all()
    assert (got.certainty_RxGxM[got.certainty_RxGxM != 0] >= np.log(V) - 1e-5).all()
    without = run(sampling=sampling, **options)
    assert without.entropy_RxGxM is None and without.certainty_RxGxM is None
    assert_same(got, without)


def test_statistics_on_a_mesh_are_those_of_one_device(run, params, tiny, mesh8):
    specs = sharding.tree_shardings(decoder.abstract_params(tiny), mesh8)
    got = run(params=jax.device_put(params, specs), mesh=mesh8, slots=4, stats=True)
    for name, want in zip(STATS, direct_stats(params, tiny, got, 1.0), strict=True):
        gap = np.abs(getattr(got, name) - want).max()
        print(f"mesh8: {name} {gap:.2e}")
        assert gap < 1e-5


def test_statistics_compile_once_and_leave_the_usual_path_alone(run):
    run(stop=NEVER)
    run(stop=NEVER, stats=True)
    with compiles.count() as compiled:
        run(stop=NEVER, sampling=Sampling(temperature=0.6))
        run(stop=NEVER, sampling=Sampling(temperature=0.6), stats=True)
    assert compiled() == 0


# A sample depends on key, row id and its index alone.


@pytest.mark.parametrize(
    "options",
    [{"slots": 8}, {"slots": 4, "chunk": 3}],
    ids=["8 slots", "4 slots, chunks of 3"],
)
def test_slots_and_chunks_change_nothing(run, reference, options, monkeypatch):
    moves = Counter()
    for name in ("admit", "grow", "compact", "decode_chunk"):
        monkeypatch.setattr(decoding, name, counting(getattr(decoding, name), name, moves))
    got = run(**options)
    print(options, dict(moves))
    assert moves["grow"] and moves["compact"] and moves["admit"] > 3
    assert_same(got, reference)


def counting(function, name, counter):
    def counted(*args, **kwargs):
        counter[name] += 1
        return function(*args, **kwargs)

    return counted


def test_alone_in_another_order_or_in_a_larger_batch(run, reference):
    for r in range(len(PROMPTS)):
        assert_same(run([PROMPTS[r]], [IDS[r]]), pick(reference, [r]))
    order = [4, 2, 5, 0, 3, 1]
    got = run([PROMPTS[r] for r in order], [IDS[r] for r in order])
    assert_same(got, pick(reference, order))
    others = [_rng.integers(0, V, n).tolist() for n in (3, 17, 8, 1)]
    mixed = [others[0], *PROMPTS[:3], *others[1:], *PROMPTS[3:]]
    ids = [50, *IDS[:3], 51, 52, 53, *IDS[3:]]
    assert_same(pick(run(mixed, ids), [1, 2, 3, 7, 8, 9]), reference)


def test_the_samples_of_a_smaller_group_are_the_first_of_a_larger_one(run, reference):
    larger = run([PROMPTS[2]], [IDS[2]], 3 * G)
    assert_same(pick(larger, [0], 0, G), pick(reference, [2]))


def test_key_row_and_index_each_matter(run, reference):
    tokens = reference.tokens_RxGxM
    assert all(len({row[g].tobytes() for g in range(G)}) == G for row in tokens)
    other_key = run(key=jax.random.key(6)).tokens_RxGxM
    other_ids = run(ids=[i + 1 for i in IDS]).tokens_RxGxM
    for other in (other_key, other_ids):
        assert (other != tokens).any(-1).mean() > 0.9
    # The same prompt under two ids.
    got = run([PROMPTS[2]] * 2, [1, 2], stop=NEVER).tokens_RxGxM
    assert len({s.tobytes() for s in got.reshape(-1, M)}) == 2 * G


def test_an_id_that_comes_again_gets_fresh_samples(run):
    got = run([PROMPTS[2], PROMPTS[1], PROMPTS[2], PROMPTS[2]], [7, 8, 7, 7], stop=NEVER)
    again = got.tokens_RxGxM[[0, 2, 3]].reshape(-1, M)
    assert len({s.tobytes() for s in again}) == 3 * G
    # They are the next indices of the same row: what one call for 12 samples gives.
    group = run([PROMPTS[2]], [7], 3 * G, stop=NEVER)
    np.testing.assert_array_equal(again, group.tokens_RxGxM[0])


def test_first_tokens_come_with_the_models_frequencies(run, params, tiny):
    """600 rows × 4 samples of one prompt: rows and samples draw independently of each other."""
    rows = 600
    samples = run([PROMPTS[1]] * rows, range(rows), limit=1)
    one = pick(samples, [0], 0, 1)
    probs = np.exp(log_softmax(direct_scores(params, tiny, PROMPTS[1:2], one)[0, 0, 0]))
    first = samples.tokens_RxGxM[:, :, 0]
    n = first.size

    def chi2(counts, expected):
        return ((counts - expected) ** 2 / expected).sum()

    assert chi2(np.bincount(first.reshape(-1), minlength=V), n * probs) < 44.3  # 15 df, p = 1e-4
    # Pairs within a row, in four classes of tokens: a shared draw would make them equal.
    classes = np.argsort(np.argsort(-probs)) % 4
    share = np.array([probs[classes == c].sum() for c in range(4)])
    pairs = classes[first[:, 0]] * 4 + classes[first[:, 1]]
    expected = rows * np.outer(share, share).reshape(-1)
    assert chi2(np.bincount(pairs, minlength=16), expected) < 44.3


# Work that is done once.


@pytest.mark.parametrize(("slots", "chunk"), [(8, 8), (4, 3)])
def test_every_prompt_is_prefilled_once(run, monkeypatch, slots, chunk):
    """Two rows at a time, or one: the rows of all calls are the prompts, less their last token."""
    seen = []
    prefill = decoding.prefill

    def spy(params, tokens, *rest):
        seen.extend(np.asarray(tokens))
        return prefill(params, tokens, *rest)

    monkeypatch.setattr(decoding, "prefill", spy)
    run(slots=slots, chunk=chunk)
    want = np.zeros((len(PROMPTS), 16), np.int32)
    for row, prompt in zip(want, PROMPTS, strict=True):
        row[: len(prompt) - 1] = prompt[:-1]
    np.testing.assert_array_equal(np.stack(seen), want)


# Lengths and stops.


def test_samples_have_the_promised_form(reference):
    check_form(reference, STOP, M)
    assert reference.stopped_RxG.any() and not reference.stopped_RxG.all()
    assert reference.lengths_RxG.min() < 8 < reference.lengths_RxG[reference.stopped_RxG].max()


def test_without_a_stop_token_every_sample_reaches_the_limit_exactly(run):
    for limit in (M, 9, 8, 1):
        samples = run(stop=NEVER, limit=limit)
        check_form(samples, NEVER, limit)
        assert (samples.lengths_RxG == limit).all() and not samples.stopped_RxG.any()


def test_the_limit_cuts_a_sample_and_changes_none_of_its_tokens(run, reference):
    for limit in (1, 8, 9):
        samples = run(limit=limit)
        check_form(samples, STOP, limit)
        lengths = np.minimum(reference.lengths_RxG, limit)
        np.testing.assert_array_equal(samples.lengths_RxG, lengths)
        np.testing.assert_array_equal(samples.tokens_RxGxM, reference.tokens_RxGxM[:, :, :limit])


def test_one_token_and_one_sample(run, reference):
    got = run([PROMPTS[0]], [IDS[0]], 1, limit=1)
    assert len(PROMPTS[0]) == 1 and got.tokens_RxGxM.shape == (1, 1, 1)
    assert got.tokens_RxGxM[0, 0, 0] == reference.tokens_RxGxM[0, 0, 0]


def test_greedy_is_argmax_without_a_cache(run, params, tiny):
    """Prompts at the edges of the buckets 16 and 24, each alone, so that the bucket is its own."""
    prompts = [PROMPTS[0], PROMPTS[3], PROMPTS[4], *(_rng.integers(0, V, n) for n in (18, 25))]
    limit, texts = 6, [list(map(int, p)) for p in prompts]
    for _ in range(limit):
        tokens = np.zeros((24, 32), np.int32)
        for row, text in zip(tokens, texts, strict=False):
            row[: len(text)] = text
        positions = np.broadcast_to(np.arange(32, dtype=np.int32), tokens.shape)
        zeros = np.zeros_like(tokens)
        scores = np.asarray(_direct(params, tokens, positions, zeros, zeros, tiny))
        for row, text in zip(scores, texts, strict=False):
            best, second = np.sort(row[len(text) - 1])[[-1, -2]]
            assert best - second > 1e-4  # no near tie that rounding could turn
            text.append(int(row[len(text) - 1].argmax()))
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        got = run([list(prompt)], [i], 2, Sampling(temperature=0.0), limit=limit, stop=NEVER)
        assert got.tokens_RxGxM[0].tolist() == [text[len(prompt) :]] * 2
        assert (got.logprobs_RxGxM == 0).all()


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_nothing_to_continue_is_refused(run, prompts):
    with pytest.raises(UserError, match="Nothing to generate from"):
        run(prompts, range(len(prompts)))


@pytest.mark.parametrize("options", [{"slots": 0}, {"chunk": 0}])
def test_bad_settings_are_refused_by_name(options):
    with pytest.raises(UserError, match=rf"rollout\.{next(iter(options))}=0"):
        RolloutConfig(**options)


# Compilations.


def test_the_counter_counts_a_compilation_once():
    function = jax.jit(lambda x: x * 3 + 1)
    with compiles.count() as compiled:
        assert compiled() == 0
        function(np.ones(7, np.float32))
        assert compiled() == 1
        function(np.zeros(7, np.float32))
        assert compiled() == 1
        function(np.zeros(8, np.float32))
        assert compiled() == 2
    with compiles.count() as compiled:
        assert compiled() == 0


def test_nothing_compiles_once_the_buckets_are_warm(run):
    """Other prompts, lengths, ids, key, limit and values of sampling, whole numbers among them."""
    run(stop=NEVER)
    others = [_rng.integers(0, V, n).tolist() for n in (3, 17, 8, 2, 11, 6)]
    for sampling in (
        Sampling(temperature=0.5, top_p=0.9, top_k=4, min_p=0.01),
        Sampling(temperature=1, top_p=1, min_p=0),
        Sampling(temperature=0, top_k=np.int64(2)),
        Sampling(temperature=np.float64(0.8), top_p=jnp.float32(0.5)),
    ):
        with compiles.count() as compiled:
            got = run(others, range(6), sampling=sampling, key=jax.random.key(9), stop=(97, 98))
        assert compiled() == 0
        assert (got.lengths_RxG == M).all()


def test_ragged_runs_compile_no_more_than_their_buckets(run, monkeypatch):
    """Each (slots, capacity) of a decode compiles once, and all lie in the few that are allowed."""
    shapes, decode = set(), decoding.decode_chunk

    def spy(params, slots, *args, **kwargs):
        shapes.add((slots.position.shape[0], slots.cache.capacity))
        return decode(params, slots, *args, **kwargs)

    monkeypatch.setattr(decoding, "decode_chunk", spy)
    with compiles.count() as compiled:
        for seed in range(12):
            n = np.random.default_rng(seed).integers(1, 18, 7)
            prompts = [_rng.integers(0, V, k).tolist() for k in n]
            prompts[0] = PROMPTS[4]
            run(prompts, range(7), sampling=Sampling(0.5 + seed / 6), key=jax.random.key(seed))
    allowed = {(s, c) for s in (8, 4, 2, 1) for c in (24, 32)}
    assert shapes <= allowed
    # Decode and admit for each of those; a prefill; compaction and growth between them; the start.
    assert compiled() <= 2 * len(allowed) + 1 + 6 + 4 + 1


@pytest.mark.parametrize("minimum", [1, 8, 16])
def test_a_bucket_holds_its_number_and_wastes_at_most_a_half(minimum):
    for n in range(1, 2000):
        size = bucket(n, minimum)
        assert size >= n and (size == max(minimum, 1) or size * 2 <= 3 * n or size <= minimum * 2)
        assert bucket(size, minimum) == size
    assert len({bucket(n, minimum) for n in range(1, 2000)}) <= 24
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 32, 33, 48, 49)] == [
        16, 16, 24, 24, 32, 32, 48, 48, 64,
    ]  # fmt: skip


def test_weights_cast_once_give_what_casting_at_every_token_gives(run, params, tiny, monkeypatch):
    """Bit for bit, in bfloat16 products of float32 weights."""
    cfg = replace(tiny, dtype="bfloat16", qk_norm=True)
    own = jax.jit(lambda key: initialise(decoder.abstract_params(cfg), key))(jax.random.key(1))
    once = run(cfg=cfg, params=own)
    monkeypatch.setattr(decoding, "cast_once", lambda params, dtype: params)
    jax.clear_caches()
    always = run(cfg=cfg, params=own)
    np.testing.assert_array_equal(once.tokens_RxGxM, always.tokens_RxGxM)
    np.testing.assert_array_equal(once.logprobs_RxGxM, always.logprobs_RxGxM)
