"""The base: batches with pictures that a model can learn from, a hash that tells all, made once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.config import ModelConfig, VisionConfig
from models.shared import unconstrained
from selfevolve_jax import made_base, sft, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import add_images, build_batch
from selfevolve_jax.grpo.logprobs import token_logprobs
from selfevolve_jax.images import load_image, preprocess
from selfevolve_jax.mm_upt import base
from selfevolve_jax.mm_upt.recipe import BaseConfig
from selfevolve_jax.rollout.engine import Samples
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.state import init_params, init_state
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.pictures import PicturesConfig
from tests import tiny_vlm

MODEL = ModelConfig(
    vocab_size=pictures.VOCABULARY,
    d_model=32,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=16,
    d_ff=32,
    mrope_sections=(2, 3, 3),
    vision=VisionConfig(16, 1, 2, 16, pictures.IMAGE_TOKEN, (0,), patch=8, window=pictures.SIDE),
)
SHOWN = PicturesConfig(train_rows=8, held_out_rows=5)
CONFIG = BaseConfig(model=MODEL, drawings=10, steps=2, batch=4)


@pytest.fixture(scope="module")
def task():
    return pictures.load_task(SHOWN, 0, MODEL.vision)


def test_the_loss_is_what_the_trainer_says_of_the_same_responses(mesh1):
    """Rows with no, one and two pictures: as samples of a rollout, as a supervised batch, and as one
    that is packed into a single row."""
    rows, G = tiny_vlm.task().train[:3], 1
    params = init_params(tiny_vlm.MODEL, jax.random.key(0), mesh1)
    responses = np.array([[[4, 9, 15]], [[7, 3, 15]], [[2, 2, 15]]], np.int32)
    zeros = np.zeros(responses.shape, np.float32)
    samples = Samples(responses, zeros, np.full((3, G), 3, np.int32), np.ones((3, G), bool))
    prompts = [row.prompt_tokens for row in rows]
    seen = encode_images(params, rows, tiny_vlm.IMAGES, tiny_vlm.MODEL, mesh1)
    batch = sharding.put_batch(build_batch(prompts, samples, images=seen), mesh1)
    sampled = add_images(batch, seen, 3, 1, True, mesh1)
    shown = [
        [preprocess(load_image(i), tiny_vlm.IMAGES, tiny_vlm.VISION) for i in row.images]
        for row in rows
    ]
    pairs = list(zip(prompts, responses[:, 0].tolist(), strict=True))
    length = max(len(p) + len(r) for p, r in pairs) + 3
    alone = [(p, [((), r)]) for p, r in pairs]
    learnt = sharding.put_batch(sft.supervised_batch(alone, length, shown, tiny_vlm.VISION), mesh1)

    @jax.jit
    def of(batch):
        scored = token_logprobs(params, batch, jnp.float32(1.0), tiny_vlm.MODEL, 16)[0]
        return scored, batch.sequence_ids_BxT

    (a, ids), (b, own) = of(sampled), of(learnt)
    in_one = sft.supervised_batch(alone, sum(map(len, prompts)) + 9, shown, tiny_vlm.VISION, 1)
    assert in_one.tokens_BxT.shape[0] == 1 and in_one.image_index_BxT.max() > 0
    c, packed = of(sharding.put_batch(in_one, mesh1))
    for n in range(3):
        theirs = np.asarray(a)[np.asarray(ids) == n]
        for scores, where in ((b, own), (c, packed)):
            ours = np.asarray(scores)[np.asarray(where) == n]
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
            assert len(ours) == 3


def test_a_prompt_that_does_not_match_its_picture_is_refused(task):
    row = task.train[0]
    picture = preprocess(load_image(row.images[0]), task.images, MODEL.vision)
    with pytest.raises(UserError, match=r"9 image tokens.*2 image"):
        sft.supervised_batch([(row.prompt_tokens, [((), [5])])], 40, [[picture] * 2], MODEL.vision)


def test_answers_are_learnt_from_the_pictures(task, mesh1):
    """One question and four pictures: nothing but the pictures tells the answers apart. Every leaf of
    the tower has a gradient."""
    adam = optax.adam(1e-2)
    state = init_state(init_params(MODEL, jax.random.key(1), mesh1), MODEL, adam, mesh1)
    before = jax.device_get(state.params.vision)
    rows = task.train[:4]
    prompt = pictures.prompt_tokens("sum?", task.tokenizer, MODEL.vision, task.images)
    shown = [[preprocess(load_image(r.images[0]), task.images, MODEL.vision)] for r in rows]
    pairs = [(prompt, [((), [5 + i, 49])]) for i in range(4)]
    batch = sharding.put_batch(sft.supervised_batch(pairs, 28, shown, MODEL.vision), mesh1)
    state, loss = sft.train(state, [batch] * 250, MODEL, adam, unconstrained)
    assert loss < 0.1 < np.log(4) / 2  # blind, the first of two tokens costs log 4
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, state.params.vision)
    assert all(jax.tree.leaves(moved))


def test_batches_are_one_shape_and_never_show_what_is_held_out(task, monkeypatch):
    """The drawings repeat those of the held-out rows unless they are avoided."""
    config, real = replace(CONFIG, asking=0.5), pictures.draw
    held_out = pictures.shown_by(task.held_out)
    again, seen = [], []

    def draw(rng, kind, faint):
        if len(again) % 2:  # every other drawing is what the first held-out row of its kind shows
            rng = np.random.default_rng([0, 1])
        again.append(kind)
        return real(rng, kind, faint)

    first = real(np.random.default_rng([0, 1]), "count", False)
    assert pictures.fingerprint(first.image) in held_out
    noisy = pictures.noisy_examples
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "draw", draw)
        patch.setattr(
            pictures, "noisy_examples", lambda rng, d, *a: seen.append(d) or noisy(rng, d, *a)
        )
        shown = replace(SHOWN, kinds=("count",))
        made = list(base.batches(config, shown, task, 0))
    shapes = {tuple(x.shape for x in jax.tree.leaves(batch)) for batch in made}
    assert len(made) == 2 and len(shapes) == 1
    fingerprints = {pictures.fingerprint(d.image) for d in seen}
    assert 5 < len(fingerprints) <= 10 and not fingerprints & held_out and len(again) > 12


def test_labels_err_in_the_last_part_of_the_steps_alone(task, monkeypatch):
    told, noisy = [], pictures.noisy_examples
    monkeypatch.setattr(
        pictures, "noisy_examples", lambda rng, d, *a: told.append(a) or noisy(rng, d, *a)
    )
    config = replace(
        CONFIG, steps=4, clean=0.75, noise=0.3, glance=0.5, misread=0.6, asking=0.2, batch=2
    )
    assert len(list(base.batches(config, SHOWN, task, 0))) == 4
    assert told == 6 * [(0.2, 0.0, 0.0, 0.0)] + 2 * [(0.2, 0.3, 0.5, 0.6)]


def test_batches_are_a_function_of_the_seed(task):
    one, two, other = (next(iter(base.batches(CONFIG, SHOWN, task, s))) for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not np.array_equal(other.tokens_BxT, one.tokens_BxT)


def test_the_hash_names_all_that_decides_the_weights(task, monkeypatch):
    def name(config=CONFIG, shown=SHOWN, task=task, seed=0):
        return base.content_hash(config, shown, task, seed)

    more = pictures.load_task(replace(SHOWN, train_rows=9), 0, MODEL.vision)
    other = pictures.load_task(replace(SHOWN, held_out_rows=6), 0, MODEL.vision)
    assert name() == name() == name(task=more)  # train rows are not learnt from
    names = [
        name(),
        name(replace(CONFIG, noise=0.3)),
        name(replace(CONFIG, hard=0.5)),
        name(replace(CONFIG, asking=0.0)),
        name(replace(CONFIG, drawings=11)),
        name(replace(CONFIG, model=replace(MODEL, d_ff=64))),
        name(shown=replace(SHOWN, kinds=("bars",))),
        name(task=other),
        name(seed=1),
    ]
    monkeypatch.setattr(base, "_SOURCES", base._SOURCES[1:])
    names.append(name())
    assert len(set(names)) == len(names)


def test_the_base_is_made_once_whole_and_sees(task, monkeypatch, tmp_path, mesh1):
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path))
    said = []
    made = base.get_base(CONFIG, SHOWN, task, 0, mesh1, said.append)
    monkeypatch.setattr(made_base, "make", lambda *a: pytest.fail("made again"))
    found = base.get_base(CONFIG, SHOWN, task, 0, mesh1, said.append)
    jax.tree.map(np.testing.assert_array_equal, made.params, found.params)
    assert found.images == pictures.IMAGES and found.model == MODEL
    assert found.stop_tokens == task.stop_tokens
    assert found.tokenizer.get_vocab() == task.tokenizer.get_vocab()
    assert found.tokenizer.chat_template
    assert [p.name[0] != "." for p in (tmp_path / "bases").iterdir()] == [True]
    assert "from the cache" in said[-1]
