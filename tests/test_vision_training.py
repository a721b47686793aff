"""Prompts with pictures through sampler, update and trainer: the same numbers on every path, a tower
that stays or moves as asked, and each picture encoded once a prompt."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from etils import epath

from models import vision
from models.config import LoraConfig
from selfevolve_jax import checkpoint, sharding, state, trainer
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import add_images, build_batch
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout import prompt_images
from selfevolve_jax.rollout.engine import RolloutConfig, generate
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.run_dir import METRICS
from selfevolve_jax.srt.run import load_task
from selfevolve_jax.tasks.sums import SumsConfig
from selfevolve_jax.trainer import TrainerConfig
from tests import seeing, tiny_vlm
from tests.tiny_vlm import MODEL

G, M = 4, 6
CONFIG = TrainerConfig(
    steps=2,
    prompts_per_step=4,
    samples_per_prompt=G,
    shared_prompt=2,
    max_new_tokens=M,
    eval_every=2,
    eval_samples=2,
    save_every=1,
    optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, clip_norm=None),
    rollout=RolloutConfig(slots=8, chunk=8),
)


@pytest.fixture(scope="module")
def task():
    return tiny_vlm.task()


@pytest.fixture(scope="module")
def params(mesh1):
    return state.init_params(MODEL, jax.random.key(0), mesh1)


def sample(params, rows, mesh, **options):
    seen = encode_images(params, rows, tiny_vlm.IMAGES, MODEL, mesh)
    samples = generate(
        params,
        [row.prompt_tokens for row in rows],
        [row.id for row in rows],
        G,
        jax.random.key(3),
        Sampling(temperature=0.7),
        max_new_tokens=M,
        stop_tokens=(15,),
        cfg=MODEL,
        mesh=mesh,
        config=RolloutConfig(**{"slots": 8, "chunk": 8} | options),
        images=seen,
    )
    return seen, samples


def scored(params, rows, mesh, seen, samples, shared, trained):
    """The trainer's log-probs of every sampled token, by sequence."""
    prompts = [row.prompt_tokens for row in rows]
    batch = build_batch(
        prompts,
        samples,
        samples_per_segment=shared,
        images=seen,
        row_multiple=sharding.batch_ways(mesh),
    )
    batch = sharding.put_batch(batch, mesh)
    batch = add_images(batch, seen, len(rows), G // shared, trained, mesh)
    constrain = sharding.constrainer(mesh)
    run = jax.jit(lambda p, b: token_logprobs(p, b, np.float32(0.7), MODEL, 16, constrain)[0])
    logprobs, ids = jax.device_get((run(params, batch), batch.sequence_ids_BxT))
    return np.concatenate([logprobs[ids == n] for n in range(len(rows) * G)])


def drawn(samples):
    inside = np.arange(M) < samples.lengths_RxG[..., None]
    return samples.logprobs_RxGxM[inside]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("shared", [1, G])
def test_sampler_and_trainer_agree(params, task, mesh1, shared, trained):
    """1e-5 in float32 on mixed rows: no, one and two pictures, of several sizes."""
    rows = task.train[:4]
    seen, samples = sample(params, rows, mesh1)
    ours = scored(params, rows, mesh1, seen, samples, shared, trained)
    np.testing.assert_allclose(ours, drawn(samples), atol=1e-5, rtol=0)


def test_eight_devices_give_what_one_gives(params, task, mesh1, mesh8):
    rows = task.train[:4]
    specs = jax.tree.map(lambda x: x.sharding, state.init_params(MODEL, jax.random.key(0), mesh8))
    spread = jax.device_put(params, specs)
    _, alone = sample(params, rows, mesh1)
    seen, samples = sample(spread, rows, mesh8)
    np.testing.assert_array_equal(samples.tokens_RxGxM, alone.tokens_RxGxM)
    np.testing.assert_allclose(samples.logprobs_RxGxM, alone.logprobs_RxGxM, atol=1e-5, rtol=0)
    ours = scored(spread, rows, mesh8, seen, samples, 2, True)
    np.testing.assert_allclose(ours, drawn(samples), atol=1e-5, rtol=0)


def test_a_sample_depends_on_its_pictures_and_on_nothing_beside_it(params, task, mesh1):
    rows = task.train[:4]
    _, together = sample(params, rows, mesh1)
    for r in (1, 2):
        _, alone = sample(params, rows[r : r + 1], mesh1)
        np.testing.assert_array_equal(alone.tokens_RxGxM[0], together.tokens_RxGxM[r])
        np.testing.assert_allclose(
            alone.logprobs_RxGxM[0], together.logprobs_RxGxM[r], atol=1e-5, rtol=0
        )
    other = [replace(rows[1], images=(tiny_vlm.picture(99, 16, 24),))]
    _, changed = sample(params, other, mesh1)
    first = np.s_[0, :, 0]  # log-probs of the first tokens
    assert not np.allclose(changed.logprobs_RxGxM[first], together.logprobs_RxGxM[1][:, 0])


def test_few_rows_at_a_time_encode_to_the_same(params, task, mesh1, monkeypatch):
    whole = encode_images(params, task.train[:5], tiny_vlm.IMAGES, MODEL, mesh1)
    monkeypatch.setattr(prompt_images, "PATCHES_AT_ONCE", 1)
    pieces = encode_images(params, task.train[:5], tiny_vlm.IMAGES, MODEL, mesh1)
    np.testing.assert_allclose(whole.features_RxUxD, pieces.features_RxUxD, atol=1e-6, rtol=0)


def train(params, task, mesh, folder, **changes):
    config = replace(CONFIG, **changes)
    return trainer.train(
        params,
        MODEL,
        task,
        "random",
        config,
        seed=0,
        mesh=mesh,
        folder=epath.Path(folder),
        title="t",
    )


def moved(before, after):
    """Names of the leaves that training changed."""
    after = dict(jax.tree_util.tree_leaves_with_path(after))
    return {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(before)
        if not np.array_equal(leaf, after[path])
    }


def test_a_frozen_tower_stays_and_a_trained_one_moves(params, task, mesh1, tmp_path, monkeypatch):
    """Frozen, each picture is encoded once a prompt: as often as rows are prefilled, and never in
    the update, which the count of traces shows."""
    traces = []
    encode = vision.encode
    monkeypatch.setattr(vision, "encode", lambda *a: traces.append(a[1]) or encode(*a))
    names = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)}
    tower = {name for name in names if name.startswith(".vision.")}

    jax.clear_caches()
    frozen = train(params, task, mesh1, tmp_path / "frozen")
    assert moved(params, frozen.params) == names - tower
    rows = {t.image_ids_RxP.shape[0] for t in traces}
    assert rows <= {CONFIG.prompts_per_step, len(task.held_out)}

    trained = train(params, task, mesh1, tmp_path / "trained", train_vision=True)
    assert moved(params, trained.params) == names


def test_adapters_alone_are_trained_and_resume_exactly(params, task, mesh1, tmp_path):
    """The KL's reference is the policy without adapters, so the first step's KL is 0."""
    options = {
        "lora": LoraConfig(2, 4.0, vision=True),
        "grpo": GRPOConfig(kl_coef=0.1),
        "steps": 3,
        "shared_prompt": G,
    }
    whole = train(params, task, mesh1, tmp_path / "whole", **options)
    assert moved(params, whole.params) == set()
    # B of the first layer's queries was zero; it is not any more.
    assert np.asarray(whole.params.layers.lora["q"].b).any()
    assert np.asarray(whole.params.vision.layers.lora["qkv"].b).any()
    kl = [m["kl/ref"] for m in read_metrics(tmp_path / "whole" / METRICS) if "kl/ref" in m]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[-1] > 1e-6

    stored = checkpoint.load_policy(tmp_path / "whole", mesh1)
    assert stored.model.lora == options["lora"] and stored.images == tiny_vlm.IMAGES
    assert moved(stored.params, whole.params) == set()


def test_packing_is_refused_with_pictures(params, task, mesh1, tmp_path):
    with pytest.raises(UserError, match=r"trainer.pack=True.*shared_prompt=4"):
        train(params, task, mesh1, tmp_path, pack=True)
    with pytest.raises(UserError, match=r"trainer.train_vision=True .* trainer.lora.rank=2"):
        replace(CONFIG, train_vision=True, lora=LoraConfig(2))


def test_pictures_need_a_policy_that_sees(params, task, mesh1):
    blind = replace(MODEL, vision=None)
    with pytest.raises(UserError, match=r"row .* reads text only"):
        encode_images(params, task.train[:2], None, blind, mesh1)


def test_a_damaged_picture_names_its_row(params, task, mesh1):
    row = replace(task.train[1], images=(b"no picture",))
    with pytest.raises(UserError, match=f"row {row.id}: .*not an image"):
        encode_images(params, [row], tiny_vlm.IMAGES, MODEL, mesh1)


def test_a_task_of_text_keeps_the_image_settings_of_a_policy_that_sees(params):
    policy = checkpoint.Policy(params, MODEL, seeing.tokenizer(), (1,), 0, tiny_vlm.IMAGES)
    assert load_task(SumsConfig(), policy, 0).images == tiny_vlm.IMAGES
