"""`update_step` against a direct implementation: one sequence at a time, no chunks, no packing, no
mesh, and the loss's derivatives written out by hand in float64."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import decoder
from selfevolve_jax import sharding
from selfevolve_jax.grpo.batch import build_batch
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.update import score, update_step
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.state import abstract_state, init_params, init_state

R, G, M, T = 2, 4, 6, 20
N = R * G
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6]]
LENGTHS = np.array([[6, 1, 4, 2], [3, 0, 5, 6]], np.int32)  # one sample is empty
REWARDS = np.array([[1, 0, 0.5, 1], [0, 1, 1, 0]], np.float32)
SOME = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
ALL = np.ones((R, G), bool)
TEMPERATURE = np.float32(0.7)
RATE = 1 / 32
# A trace that forgets at once: the optimiser state is the last gradient, and steps are plain SGD.
SGD = optax.sgd(RATE, momentum=0.0)


def make_samples():
    rng = np.random.default_rng(0)
    inside = np.arange(M) < LENGTHS[..., None]
    tokens = np.where(inside, rng.integers(0, 16, (R, G, M)), 0).astype(np.int32)
    return Samples(tokens, np.zeros((R, G, M), np.float32), LENGTHS, LENGTHS < M)


@pytest.fixture(scope="module")
def weights(tiny, mesh1):
    return init_params(tiny, jax.random.key(1), mesh1)


@pytest.fixture(scope="module")
def alone(tiny):
    """params, one sequence -> its response's log-probs and entropies [M], and their vjp."""

    @jax.jit
    def run(params, tokens, start, size, dlogp, dentropy):
        at = jnp.arange(T)
        segment = jnp.where(at < start + size, 0, -1)

        def both(params):
            zeros = jnp.zeros((1, T), jnp.int32)
            hidden = decoder.forward(params, tokens[None], at[None], segment[None], zeros, tiny)
            logp_TxV = jax.nn.log_softmax(decoder.logits(params, hidden[0], tiny) / TEMPERATURE)
            where = start + jnp.arange(M)
            here = logp_TxV[where - 1]
            own = here[jnp.arange(M), tokens[where]]
            return own, -(jnp.exp(here) * here).sum(-1)

        values, vjp = jax.vjp(both, params)
        return *values, vjp((dlogp, dentropy))[0]

    return run


def sequence(samples, i):
    prompt = PROMPTS[i // G]
    tokens = np.zeros(T, np.int32)
    tokens[: len(prompt) + M] = [*prompt, *samples.tokens_RxGxM[i // G, i % G]]
    return tokens, len(prompt), LENGTHS.flat[i]


NOTHING = np.zeros(M, np.float32)


def direct_scores(alone, params, samples):
    """Float64 log-probs and entropies [N, M]; what lies beyond a sample's length is meaningless."""
    rows = [alone(params, *sequence(samples, i), NOTHING, NOTHING)[:2] for i in range(N)]
    return (np.asarray(x, np.float64) for x in zip(*rows, strict=True))


def direct_advantages(kind, rewards, trained):
    """Sample by sample, from the published formulas."""
    out = np.zeros((R, G))
    kept = [[rewards[r, g] for g in range(G) if trained[r, g]] for r in range(R)]
    for r in range(R):
        for g in range(G):
            if not trained[r, g]:
                continue
            mean = sum(kept[r]) / len(kept[r])
            others = [rewards[r, h] for h in range(G) if trained[r, h] and h != g]
            out[r, g] = {
                "dr_grpo": lambda: rewards[r, g] - mean,  # noqa: B023
                "grpo": lambda: (rewards[r, g] - mean) / (np.std(kept[r], ddof=1) + 1e-6),  # noqa: B023
                "rloo": lambda: rewards[r, g] - np.mean(others),  # noqa: B023
                "reinforce++": lambda: rewards[r, g],  # noqa: B023
                "reinforce++_baseline": lambda: rewards[r, g] - mean,  # noqa: B023
            }[kind]()
    if kind.startswith("reinforce++"):
        values = out[trained]
        out = np.where(trained, (out - values.mean()) / (values.std() + 1e-6), 0)
    return out.reshape(-1)


def direct_kl(kind, logp, ref):
    """Value, and derivative with respect to logp."""
    delta = ref - logp
    return {
        "k1": (-delta, np.ones_like(delta)),
        "k2": (delta**2 / 2, -delta),
        "k3": (np.exp(delta) - delta - 1, 1 - np.exp(delta)),
    }[kind]


def direct_policy(cfg, logp, old, A):
    """Loss, its derivative by logp, and whether the clip decided, of each token of ONE sequence."""
    r = np.exp(logp - old)
    if cfg.loss == "gspo":
        r = np.full_like(r, np.exp(np.mean(logp - old)))
    low, high = 1 - cfg.clip_low, 1 + cfg.clip_high
    if cfg.loss == "cispo":
        held = np.clip(r, low, high)
        return -held * A * logp, -held * A, held != r
    loss, slope, clipped = -r * A, -r * A, np.zeros(r.shape, bool)
    if A > 0:
        clipped = r > high
        loss = np.where(clipped, -high * A, loss)
    elif A < 0:
        cap = cfg.dual_clip or np.inf
        clipped = (r < low) | (r > cap)
        loss = np.where(r < low, -low * A, np.where(r > cap, -cap * A, loss))
    return loss, np.where(clipped, 0.0, slope), clipped


def direct_gradient(alone, params, samples, members, extra, trained, cfg, max_new):
    """(loss, gradient, metrics) of one optimiser step over the sequences `members`."""
    logp_NxM, entropy_NxM = direct_scores(alone, params, samples)
    lengths = LENGTHS.reshape(-1)
    old_NxM = logp_NxM if cfg.minibatches == 1 else extra["old"]
    rewards = REWARDS.astype(np.float64)
    if cfg.overlong_buffer:
        over = lengths.reshape(R, G) - (max_new - cfg.overlong_buffer)
        rewards = rewards - cfg.overlong_factor * np.maximum(over, 0) / cfg.overlong_buffer
    if cfg.kl_coef and cfg.kl_in == "reward":
        for i in range(N):
            n = lengths[i]
            kl = direct_kl(cfg.kl_estimator, extra["old"][i, :n], extra["ref"][i, :n])[0]
            rewards[i // G, i % G] -= cfg.kl_coef * kl.sum()
    A = direct_advantages(cfg.advantage, rewards, trained)

    used = [i for i in members if trained.reshape(-1)[i] and lengths[i]]
    tokens = sum(lengths[i] for i in used)
    loss, total = 0.0, jax.tree.map(lambda x: np.zeros(x.shape, np.float64), params)
    metrics = dict.fromkeys(("entropy", "clip_fraction", "sampler_gap", "kl"), 0.0)
    for i in used:
        n = lengths[i]
        logp, entropy, old = logp_NxM[i, :n], entropy_NxM[i, :n], old_NxM[i, :n]
        value, slope, clipped = direct_policy(cfg, logp, old, A[i])
        gap = old - extra["rollout"][i, :n]
        if cfg.importance_cap is not None:
            w = np.minimum(np.exp(gap), cfg.importance_cap)
            value, slope = value * w, slope * w
        if cfg.kl_coef:
            kl, kl_slope = direct_kl(cfg.kl_estimator, logp, extra["ref"][i, :n])
            metrics["kl"] += kl.sum() / tokens
            if cfg.kl_in == "loss":
                value, slope = value + cfg.kl_coef * kl, slope + cfg.kl_coef * kl_slope
        value = value - cfg.entropy_coef * entropy
        weight = {
            "token_mean": 1 / tokens,
            "seq_mean_token_sum": 1 / len(used),
            "seq_mean_token_mean": 1 / len(used) / n,
            "seq_mean_token_sum_norm": 1 / len(used) / max_new,
        }[cfg.aggregation]
        loss += weight * value.sum()
        dlogp, dentropy = np.zeros((2, M), np.float32)
        dlogp[:n], dentropy[:n] = weight * slope, -weight * cfg.entropy_coef
        grad = alone(params, *sequence(samples, i), dlogp, dentropy)[2]
        total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, grad)
        metrics["entropy"] += entropy.sum() / tokens
        metrics["clip_fraction"] += clipped.sum() / tokens
        metrics["sampler_gap"] += np.abs(gap).sum() / tokens
    return loss, total, metrics


def lay_out(samples, cfg, mesh, extra, shared=1, pack=False):
    """The batch on the mesh, with old, reference and rollout log-probs as given [N, M]."""
    rows = sharding.batch_ways(mesh) * cfg.accumulate * cfg.minibatches
    batch = build_batch(
        PROMPTS, samples, row_multiple=rows, samples_per_segment=shared, pack=pack, length=T
    )
    ids = batch.sequence_ids_BxT
    starts = np.array([len(PROMPTS[i // G]) for i in range(N)])

    def placed(x_NxM):
        index = np.clip(batch.positions - starts[ids], 0, M - 1)
        return np.where(ids >= 0, x_NxM[ids, index], 0).astype(np.float32)

    batch = replace(
        batch,
        rollout_logprobs_BxT=placed(extra["rollout"]),
        old_logprobs_BxT=placed(extra["old"]),
        ref_logprobs_BxT=placed(extra["ref"]) if cfg.kl_coef else None,
    )
    return batch, sharding.put_batch(batch, mesh)


@dataclass(frozen=True)
class Case:
    cfg: GRPOConfig
    shared: int = 1
    pack: bool = False
    mesh: str = "mesh1"
    trained: str = "some"


base = partial(GRPOConfig, logprob_chunk=7)
WIDE = partial(base, minibatches=2, clip_low=0.2, clip_high=0.28, dual_clip=1.5)
CASES = {
    "rloo ppo on-policy": Case(base()),
    "everything": Case(
        WIDE(
            advantage="grpo",
            aggregation="seq_mean_token_sum",
            kl_coef=0.1,
            entropy_coef=0.05,
            importance_cap=1.1,
            accumulate=2,
        )
    ),
    "dr_grpo gspo k1 in reward, shared": Case(
        WIDE(
            advantage="dr_grpo",
            loss="gspo",
            aggregation="seq_mean_token_mean",
            kl_coef=0.1,
            kl_estimator="k1",
            kl_in="reward",
        ),
        shared=2,
    ),
    "reinforce++ cispo k2, packed": Case(
        WIDE(
            advantage="reinforce++",
            loss="cispo",
            aggregation="seq_mean_token_sum_norm",
            kl_coef=0.1,
            kl_estimator="k2",
        ),
        pack=True,
    ),
    "baseline, k3 in reward, overlong, accumulate 4": Case(
        base(
            advantage="reinforce++_baseline",
            kl_coef=0.1,
            kl_in="reward",
            overlong_buffer=3,
            accumulate=4,
        ),
        trained="all",
    ),
    "cispo k1 in loss, shared and packed": Case(
        base(loss="cispo", kl_coef=0.1, kl_estimator="k1", entropy_coef=0.1), shared=2, pack=True
    ),
    "k2 in reward": Case(
        base(kl_coef=0.1, kl_estimator="k2", kl_in="reward", aggregation="seq_mean_token_mean")
    ),
    "mesh8 everything": Case(
        WIDE(
            advantage="grpo",
            aggregation="seq_mean_token_mean",
            kl_coef=0.1,
            entropy_coef=0.05,
            importance_cap=1.1,
            accumulate=2,
        ),
        mesh="mesh8",
    ),
    "mesh8 gspo shared packed": Case(
        base(loss="gspo", aggregation="seq_mean_token_sum", accumulate=2),
        mesh="mesh8",
        shared=2,
        pack=True,
    ),
}


@pytest.fixture(scope="module")
def scene(alone, weights):
    """Samples, and log-probs of samplers and references that are off from the policy's own."""
    samples = make_samples()
    logp, _ = direct_scores(alone, weights, samples)
    rng = np.random.default_rng(3)
    inside = np.arange(M) < LENGTHS.reshape(-1, 1)
    off = {k: logp + s * rng.normal(size=(N, M)) for k, s in SPREADS.items()}
    return samples, {k: np.where(inside, v, 0.0) for k, v in off.items()}


SPREADS = {"old": 0.4, "ref": 0.5, "rollout": 0.2}


def host(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(tree))


def worst(a, b):
    return max(
        np.abs(x - y).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_a_direct_implementation(name, request, tiny, weights, alone, scene):
    case = CASES[name]
    cfg, mesh = case.cfg, request.getfixturevalue(case.mesh)
    samples, extra = scene
    trained = SOME if case.trained == "some" else ALL
    layout, batch = lay_out(samples, cfg, mesh, extra, case.shared, case.pack)
    state = init_state(jax.device_get(weights), tiny, SGD, mesh)
    before = jax.tree.map(lambda x: x.sharding, state)
    state, metrics = update_step(
        state,
        batch,
        *sharding.put_replicated((REWARDS, trained), mesh),
        TEMPERATURE,
        tiny,
        cfg,
        SGD,
        M,
        sharding.constrainer(mesh),
    )

    params, expected, losses, seen = weights, None, [], []
    for i in range(cfg.minibatches):
        ids = layout.sequence_ids_BxT[i :: cfg.minibatches]
        members = sorted(set(ids[ids >= 0].tolist()))
        assert members
        loss, grad, parts = direct_gradient(alone, params, samples, members, extra, trained, cfg, M)
        assert max(np.abs(x).max() for x in jax.tree.leaves(grad)) > 0.02  # there is a gradient
        losses.append(loss)
        seen.append(parts)
        params = jax.tree.map(lambda p, g: (p - RATE * g).astype(np.float32), params, grad)
        expected = grad if expected is None else jax.tree.map(np.add, expected, grad)

    moved = jax.tree.map(lambda a, b: (a - b) / RATE, host(weights), host(state.params))
    assert worst(moved, expected) < 1e-5
    assert worst(host(state.opt_state[0].trace), grad) < 1e-5
    np.testing.assert_allclose(metrics["train/loss"], np.mean(losses), atol=1e-5)
    mean = {k: np.mean([s[k] for s in seen]) for k in seen[0]}
    for ours, key in (
        ("policy/entropy", "entropy"),
        ("policy/clip_fraction", "clip_fraction"),
        ("policy/sampler_gap", "sampler_gap"),
    ):
        np.testing.assert_allclose(metrics[ours], mean[key], atol=1e-5, err_msg=ours)
    if cfg.kl_coef:
        np.testing.assert_allclose(metrics["kl/ref"], mean["kl"], atol=1e-5)
    if cfg.minibatches > 1:
        assert mean["clip_fraction"] > 0.05  # the case does clip
    assert metrics["train/finite"] == 1 and state.step == 1
    assert metrics["train/tokens"] == LENGTHS[trained].sum()
    # A state that came back laid out otherwise would compile the next step again.
    for now, then in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        assert now.sharding.is_equivalent_to(then, now.ndim)


ON_POLICY = CASES["rloo ppo on-policy"].cfg


def on_policy_step(state, batch, rewards, trained, tiny, mesh1):
    """Shares the compilation of the on-policy case. There is no reference: β is 0."""
    assert batch.ref_logprobs_BxT is None
    verdict = sharding.put_replicated((rewards, trained), mesh1)
    constrain = sharding.constrainer(mesh1)
    return update_step(state, batch, *verdict, TEMPERATURE, tiny, ON_POLICY, SGD, M, constrain)


@pytest.fixture
def trained_once(tiny, mesh1, weights, scene):
    """A state whose optimiser remembers something, and the batch that it was trained on."""
    batch = lay_out(scene[0], ON_POLICY, mesh1, scene[1])[1]
    state = init_state(jax.device_get(weights), tiny, SGD, mesh1)
    return on_policy_step(state, batch, REWARDS, ALL, tiny, mesh1)[0], batch


def assert_nothing_but_the_step_changed(after, kept):
    assert after.step == kept.step + 1
    for a, b in (
        *zip(jax.tree.leaves(after.params), jax.tree.leaves(kept.params), strict=True),
        *zip(jax.tree.leaves(after.opt_state), jax.tree.leaves(kept.opt_state), strict=True),
    ):
        assert np.asarray(a).tobytes() == b.tobytes()
    assert any(x.any() for x in jax.tree.leaves(kept.opt_state))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_gradient_changes_nothing_and_is_reported(bad, trained_once, tiny, mesh1):
    state, batch = trained_once
    kept = jax.device_get(state)
    rewards = REWARDS.copy()
    rewards[1, 2] = bad
    after, metrics = on_policy_step(state, batch, rewards, ALL, tiny, mesh1)
    assert metrics["train/finite"] == 0 and not np.isfinite(metrics["train/grad_norm"])
    assert_nothing_but_the_step_changed(after, kept)
    # The same reward on a sample that is not trained is not even looked at.
    mask = ALL.copy()
    mask[1, 2] = False
    after, metrics = on_policy_step(after, batch, rewards, mask, tiny, mesh1)
    assert metrics["train/finite"] == 1 and np.isfinite(metrics["train/loss"])


def test_a_batch_with_nothing_trained_changes_nothing_but_the_step(trained_once, tiny, mesh1):
    state, batch = trained_once
    kept = jax.device_get(state)
    after, metrics = on_policy_step(state, batch, REWARDS, ~ALL, tiny, mesh1)
    assert_nothing_but_the_step_changed(after, kept)
    assert metrics["train/tokens"] == 0 and metrics["train/loss"] == 0
    assert metrics["train/finite"] == 1 and all(np.isfinite(v) for v in metrics.values())


def test_the_state_is_donated_and_the_next_one_goes_on_without_compiling(
    trained_once, tiny, mesh1, weights
):
    state, batch = trained_once
    before = update_step._cache_size()
    after, _ = on_policy_step(state, batch, REWARDS, ALL, tiny, mesh1)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    again, _ = on_policy_step(after, batch, REWARDS, ALL, tiny, mesh1)
    assert update_step._cache_size() == before and again.step == 3
    assert not any(x.is_deleted() for x in jax.tree.leaves((weights, batch)))


def test_score_gives_every_row_its_own_log_probs_whatever_the_pieces(
    tiny, mesh1, weights, alone, scene
):
    samples, extra = scene
    cfg = base(minibatches=2, accumulate=2)
    layout, batch = lay_out(samples, cfg, mesh1, extra, shared=2)
    got = np.asarray(score(weights, batch, TEMPERATURE, tiny, cfg, sharding.constrainer(mesh1)))
    expected, _ = direct_scores(alone, weights, samples)
    for i, n in enumerate(LENGTHS.reshape(-1)):
        np.testing.assert_allclose(
            got[layout.sequence_ids_BxT == i], expected[i, :n], atol=1e-5, err_msg=str(i)
        )
    assert not got[layout.sequence_ids_BxT < 0].any()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_keeps_every_dtype_of_a_bfloat16_state(accumulate, tiny, mesh1, scene):
    """Another dtype would compile the next step again and undo the donation."""
    model = replace(tiny, param_dtype="bfloat16", dtype="bfloat16")
    cfg, tx = base(accumulate=accumulate), optax.adamw(1e-3)
    state = abstract_state(model, tx, mesh1)
    batch, _ = lay_out(scene[0], cfg, mesh1, scene[1])
    constrain = sharding.constrainer(mesh1)
    after, _ = jax.eval_shape(
        lambda s: update_step(s, batch, REWARDS, ALL, TEMPERATURE, model, cfg, tx, M, constrain),
        state,
    )
    for now, then in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (now.dtype, now.shape) == (then.dtype, then.shape)
