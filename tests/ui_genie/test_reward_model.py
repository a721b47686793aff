"""The reward model: its two tokens, its scores against a forward pass written out, and its training."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, vision
from models.config import ModelConfig
from selfevolve_jax import checkpoint, sharding, state
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import layout, load_image, preprocess, prompt_positions
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.sft import supervised_step
from selfevolve_jax.trainable import split, trainable_mask
from selfevolve_jax.ui_genie import reward_model
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.contract import COMPLETED, NEGATIVE, POSITIVE, View
from selfevolve_jax.ui_genie.environment import Element
from selfevolve_jax.ui_genie.reward_model import (
    RewardTraining,
    answers,
    batches,
    reward_row,
    score,
    training_steps,
    with_reward_tokens,
)
from tests.seeing import IMAGES, VISION, png, tokenizer

# The tokenizer has 263 tokens: one row to spare, and one to add.
MODEL = ModelConfig(
    vocab_size=264,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=8,
    d_ff=24,
    qkv_bias=True,
    mrope_sections=(2, 1, 1),
    vision=VISION,
)
FRAME = Frame(16, 16)
CONFIG = RewardTraining(
    batch=4, epochs=14, optimizer=OptimizerConfig(learning_rate=2e-2, weight_decay=0.0)
)


@pytest.fixture(scope="module")
def base(mesh1):
    """An agent."""
    weights = state.init_params(MODEL, jax.random.key(0), mesh1)
    return Policy(weights, MODEL, tokenizer(), (2,), 7, IMAGES)


def click(x, y):
    return Action("click", "go", coordinate=(x, y))


def view(seed, steps=0, images=0):
    pictures = tuple(png(16, 8 + 8 * (seed % 2), 10 * seed + i) for i in range(images + 1))
    elements = (Element("button", "Ok", (0, 0, 2 * seed, 4)),)
    return View(f"go {seed}", ("a", "b", "c")[:steps], pictures, FRAME, elements)


ASKED = [
    (view(1), [click(3, 4), COMPLETED]),
    (view(2, 2, 1), [click(5, 6)]),
    (view(3, 1), []),
    (view(4, 3, 2), [COMPLETED, click(1, 1), click(2, 2)]),
    (view(5), [click(9, 9)]),
]


@pytest.fixture(scope="module")
def rm(base, mesh1):
    """With biases that are not 0, so that nothing hides."""
    made, rng = with_reward_tokens(base, 0), np.random.default_rng(5)

    def noisy(x, like):
        noise = 0.1 * rng.normal(size=x.shape).astype(np.float32)
        return jax.device_put(x + noise, like.sharding)

    return replace(made, params=jax.tree.map(noisy, jax.device_get(made.params), made.params))


def flat(scores):
    return np.array([p for group in scores for p in group])


@pytest.mark.parametrize("tie", [False, True])
def test_the_tokens_are_added_beside_what_there_was(base, tie):
    before = base
    if tie:
        cfg = replace(MODEL, tie_embeddings=True)
        before = replace(base, model=cfg, params=replace(base.params, head=None))
    made = with_reward_tokens(before, 3)
    assert answers(made) == (263, 264)
    assert made.model == replace(before.model, vocab_size=320)
    assert made.tokenizer.decode([263, 264]) == POSITIVE + NEGATIVE
    assert len(before.tokenizer) == 263  # the agent's is as it was
    tables = [(before.params.embed, made.params.embed)]
    if not tie:
        tables.append((before.params.head.T, made.params.head.T))
    for old, new in (map(np.asarray, pair) for pair in tables):
        assert new.shape == (320, 16)
        np.testing.assert_array_equal(new[:263], old[:263])
        known = old[:263]  # the row to spare has no token, and counts for nothing
        noise = (new[263:] - known.mean(0)) / (known - known.mean(0)).std()
        assert 0.08 < noise.std() < 0.12
        assert not np.allclose(new[263], new[264])
    if tie:
        assert made.params.head is None
    else:
        assert not np.allclose(made.params.embed[263], made.params.head[:, 263])
    assert with_reward_tokens(made, 4) is made
    again = with_reward_tokens(before, 3)
    jax.tree.map(np.testing.assert_array_equal, again.params, made.params)
    other = with_reward_tokens(before, 4)
    assert not np.allclose(other.params.embed[263], made.params.embed[263])


def test_rows_to_spare_are_used_before_any_are_added(base):
    cfg = replace(MODEL, vocab_size=280)
    wide = replace(
        base.params,
        embed=jnp.pad(base.params.embed, [(0, 16), (0, 0)]),
        head=jnp.pad(base.params.head, [(0, 0), (0, 16)]),
    )
    roomy = replace(base, model=cfg, params=wide)
    made = with_reward_tokens(roomy, 0)
    assert made.model == cfg and answers(made) == (263, 264)
    changed = np.flatnonzero((np.asarray(made.params.embed) != roomy.params.embed).any(1))
    assert changed.tolist() == [263, 264]


def test_it_is_saved_and_loaded_like_any_policy(base, mesh1, tmp_path):
    made = with_reward_tokens(base, 0)
    checkpoint.save_policy(made, tmp_path)
    loaded = checkpoint.load_policy(tmp_path, mesh1)
    assert answers(loaded) == answers(made) and with_reward_tokens(loaded, 9) is loaded
    jax.tree.map(np.testing.assert_array_equal, loaded.params, made.params)


def test_a_policy_without_the_tokens_is_no_reward_model(base, rm, mesh1):
    with pytest.raises(UserError, match="with_reward_tokens"):
        score(base, ASKED, "short", mesh1)
    small = replace(rm, model=MODEL)
    with pytest.raises(UserError, match=r"tokens 263 and 264.*vocab_size=264"):
        answers(small)


def written_out(rm, view, action, style):
    """One conversation by itself, scores over the whole vocabulary."""
    before, (text,) = reward_row(rm, view, [action], style)
    tokens = (*before, *text)
    seen = [preprocess(load_image(p), IMAGES, VISION) for p in view.screenshots]
    positions, _ = prompt_positions(tokens, [p.grid for p in seen], VISION)
    pixels, (index,) = layout([seen], [tokens], VISION)

    @jax.jit
    def last(params, tokens, positions, pixels, index):
        features = vision.encode(params.vision, pixels, rm.model)
        zeros = jnp.zeros_like(tokens)
        images = decoder.ImageTokens(features, index)
        hidden = decoder.forward(params, tokens, positions, zeros, zeros, rm.model, images=images)
        return decoder.logits(params, hidden[:, -1], rm.model)[0]

    arrays = (np.array(tokens, np.int32)[None], positions[None], pixels, index[None])
    logits = np.asarray(last(rm.params, *arrays), np.float64)
    good, bad = (logits[i] for i in answers(rm))
    return math.exp(good) / (math.exp(good) + math.exp(bad))


@pytest.mark.parametrize("style", ["short", "full"])
def test_a_score_is_the_softmax_over_the_two_answers(rm, mesh1, style):
    asked = [ASKED[0], ASKED[3]]
    found = score(rm, asked, style, mesh1, rows_at_once=2)
    assert [len(group) for group in found] == [2, 3]
    for (shown, actions), group in zip(asked, found, strict=True):
        want = written_out(rm, shown, actions[1], style)
        assert group[1] == pytest.approx(want, abs=1e-5)
    assert np.ptp(flat(found)) > 1e-3  # else all would agree anyway


def test_a_score_depends_on_its_view_and_action_alone(rm, mesh1):
    """Not on other candidates, other views, their order, or how many rows are padding."""
    whole = score(rm, ASKED, "short", mesh1, rows_at_once=4)
    assert [len(group) for group in whole] == [2, 1, 0, 3, 1]
    alone = [
        [score(rm, [(shown, [a])], "short", mesh1, rows_at_once=2)[0][0] for a in actions]
        for shown, actions in ASKED
    ]
    np.testing.assert_allclose(flat(whole), flat(alone), atol=1e-5, rtol=0)
    turned = [(shown, actions[::-1]) for shown, actions in ASKED[::-1]]
    back = [group[::-1] for group in score(rm, turned, "short", mesh1, rows_at_once=2)[::-1]]
    np.testing.assert_allclose(flat(whole), flat(back), atol=1e-5, rtol=0)
    assert score(rm, [], "short", mesh1) == [] and score(rm, ASKED[2:3], "short", mesh1) == [[]]
    other = replace(ASKED[0][0], screenshots=(png(16, 16, 77),))
    assert abs(score(rm, [(other, [click(3, 4)])], "short", mesh1, 2)[0][0] - whole[0][0]) > 1e-6


def test_eight_devices_give_what_one_gives(base, rm, mesh1, mesh8):
    specs = decoder.abstract_params(rm.model)
    where = sharding.tree_shardings(specs, mesh8)
    spread = replace(rm, params=jax.device_put(rm.params, where))
    alone = score(rm, ASKED, "short", mesh1, rows_at_once=2)
    np.testing.assert_allclose(
        flat(score(spread, ASKED, "short", mesh8, rows_at_once=1)), flat(alone), atol=1e-5, rtol=0
    )
    # The tokens go into a policy that is sharded already, and it stays so.
    place = sharding.tree_shardings(decoder.abstract_params(MODEL), mesh8)
    made = with_reward_tokens(replace(base, params=jax.device_put(base.params, place)), 0)
    assert made.params.embed.sharding.is_equivalent_to(where.embed, 2)
    assert made.params.head.sharding.is_equivalent_to(where.head, 2)
    np.testing.assert_allclose(
        made.params.embed, with_reward_tokens(base, 0).params.embed, atol=1e-6
    )


def test_few_shapes_are_compiled_and_pictures_are_encoded_once(rm, mesh1, monkeypatch):
    shapes = []
    run = reward_model._positive

    def spy(params, batch, *rest):
        ids = np.asarray(batch.pixels.image_ids_RxP)
        shown = sum(len(np.unique(row[row >= 0])) for row in ids)
        shapes.append((batch.tokens_BxT.shape, ids.shape, shown))
        return run(params, batch, *rest)

    monkeypatch.setattr(reward_model, "_positive", spy)
    many = [click(i, i) for i in range(5)]
    for n in (1, 2, 3, 5):
        score(rm, [(view(1), many[: 1 + i % 5]) for i in range(n)], "short", mesh1, rows_at_once=2)
    assert len(shapes) == 1 + 1 + 2 + 3  # full batches, and one that is padded
    lengths = sorted({tokens[1] for tokens, _, _ in shapes})
    # Up to five candidates of about 90 tokens: two, or as it may be three, buckets.
    assert {tokens[0] for tokens, _, _ in shapes} == {2} and len(lengths) <= 4
    assert len({(tokens, pixels) for tokens, pixels, _ in shapes}) == len(lengths)
    assert sum(shown for _, _, shown in shapes) == 1 + 2 + 3 + 5  # a view's, not a candidate's


# --- training ---------------------------------------------------------------------------------------

# Clicks are right and claims are wrong, whatever the picture; six views, so that epochs cross batches.
VIEWS = [(i, [(click(i, 5), True), (COMPLETED, False)]) for i in range(6)]


def load(row):
    number, judged = row
    return view(number + 1), judged


def optimiser(rm, config):
    """What a training of the frozen tower, or of all, is made with."""
    trainable = trainable_mask(rm.model, config.train_vision)
    mine, _ = split(decoder.abstract_params(rm.model), trainable)
    steps = training_steps(len(VIEWS), config)
    return make_optimizer(config.optimizer, steps, decay_mask(mine)), trainable


def run(rm, mesh, config=CONFIG, resumed=None, stop=None):
    """Losses, states by step as a checkpoint would keep them, and the last; no further than `stop`."""
    tx, trainable = optimiser(rm, config)
    now = resumed or state.init_state(rm.params, rm.model, tx, mesh, trainable)
    losses, kept, constrain = [], {}, sharding.constrainer(mesh)
    for batch in batches(rm, VIEWS, load, "short", config, 0, mesh, int(now.step)):
        placed = sharding.put_batch(batch, mesh)
        now, metrics = supervised_step(now, placed, rm.model, tx, 1, 256, constrain, trainable)
        losses.append(float(metrics["train/loss"]))
        kept[int(now.step)] = jax.device_get(now)
        if int(now.step) == stop:
            break
    return losses, kept, now


@pytest.fixture(scope="module")
def trained(rm, mesh1):
    return run(rm, mesh1)


def test_the_first_loss_is_minus_the_log_of_the_right_token(rm, mesh1, trained):
    """Over the whole vocabulary, as a mean over the step's judged actions."""
    first = next(batches(rm, VIEWS, load, "short", CONFIG, 0, mesh1))
    ids = np.asarray(first.sequence_ids_BxT)
    labels = first.tokens_BxT[ids >= 0]
    assert labels.tolist() == [263, 264] * 4
    losses, _, _ = trained
    # Near enough to ln V that the vocabulary is the whole one, and not to ln 2.
    assert abs(losses[0] - math.log(320)) < 1.5


def test_training_tells_right_from_wrong(rm, mesh1, trained):
    losses, _, end = trained
    assert int(end.step) == 21 and losses[-1] < 0.3 < 2 < losses[0]
    better = replace(rm, params=end.params)
    # A view that it never saw.
    (found,) = score(better, [(view(9), [click(7, 5), COMPLETED])], "short", mesh1, 2)
    assert found[0] > 0.75 and found[1] < 0.25


def test_a_frozen_tower_stays_and_a_trained_one_moves(rm, mesh8, trained):
    """The second on eight devices, where the first loss is what it is on one."""

    def moved(end):
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(rm.params), jax.tree.leaves(end.params), strict=True
        )
        return {jax.tree_util.keystr(path) for (path, a), b in pairs if not np.array_equal(a, b)}

    names = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(rm.params)}
    tower = {name for name in names if name.startswith(".vision.")}
    assert moved(trained[2]) == names - tower
    where = sharding.tree_shardings(decoder.abstract_params(rm.model), mesh8)
    spread = replace(rm, params=jax.device_put(rm.params, where))
    losses, _, end = run(spread, mesh8, replace(CONFIG, train_vision=True), stop=1)
    assert moved(end) == names
    np.testing.assert_allclose(losses[0], trained[0][0], rtol=1e-5)


def test_it_resumes_to_the_bit(rm, mesh1, trained):
    """From what a checkpoint keeps of a step in the middle of an epoch."""
    whole, kept, end = trained
    tx, trainable = optimiser(rm, CONFIG)
    where = state.shardings_of(state.abstract_state(rm.model, tx, mesh1, trainable))
    rest, _, again = run(rm, mesh1, resumed=jax.device_put(kept[16], where))
    assert rest == whole[16:] and len(rest) == 5
    jax.tree.map(np.testing.assert_array_equal, again, end)


def test_every_view_comes_once_an_epoch_in_an_order_of_the_seed(rm):
    def order(seed, done=0, n=10, **changes):
        config = RewardTraining(**({"batch": 4, "epochs": 3} | changes))
        return list(reward_model._order(n, config, seed, done))

    steps = order(0)
    assert len(steps) == training_steps(10, RewardTraining(batch=4, epochs=3))
    assert [len(step) for step in steps] == [4] * 7 + [2]  # 30 views, and none of them twice
    seen = [i for step in steps for i in step]
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20] and order(1) != steps and order(0) == steps
    for done in range(9):
        assert order(0, done) == steps[done:]
    assert [sorted(step) for step in order(0, n=3, epochs=1)] == [[0, 1, 2]]
    # A number of steps goes on for as many epochs as it takes, and all of them are full.
    fixed = order(0, epochs=None, steps=9)
    assert fixed[:7] == steps[:7] and [len(step) for step in fixed] == [4] * 9
    assert training_steps(10, RewardTraining(batch=4, steps=9)) == 9
    assert order(0, n=3) == order(0, n=3, epochs=3) != order(0, n=3, epochs=None)


def test_refusals(rm, mesh1):
    with pytest.raises(UserError, match="no judged action"):
        next(batches(rm, [], load, "short", CONFIG, 0, mesh1))
    with pytest.raises(UserError, match=r"reward\.epochs=0"):
        RewardTraining(epochs=0)
    with pytest.raises(UserError, match=r"reward\.steps=0"):
        RewardTraining(steps=0)
    both = r"reward\.epochs=2 and reward\.steps=3 both say.*--reward\.steps None"
    with pytest.raises(UserError, match=both):
        RewardTraining(epochs=2, steps=3)
