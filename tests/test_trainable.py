"""What is frozen gets no gradient and no optimiser state, and what is trained loses nothing."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from models import decoder
from models.config import LoraConfig
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.state import abstract_state, add_adapters, init_params
from selfevolve_jax.trainable import join, split, trainable_mask, trains_vision
from tests.tiny_vlm import MODEL


def trained_names(model, train_vision):
    paths = jax.tree_util.tree_leaves_with_path(decoder.abstract_params(model))
    mask = trainable_mask(model, train_vision)
    return {jax.tree_util.keystr(p) for (p, _), on in zip(paths, mask, strict=True) if on}


def with_lora(vision=False, targets=("q", "o")):
    return dataclasses.replace(MODEL, lora=LoraConfig(2, 4.0, targets, vision))


def test_masks():
    everything, text = trained_names(MODEL, True), trained_names(MODEL, False)
    assert len(everything) == len(jax.tree.leaves(decoder.abstract_params(MODEL)))
    assert {n for n in everything - text} == {n for n in everything if n.startswith(".vision.")}
    assert trained_names(with_lora(), False) == {
        f".layers.lora['{name}'].{part}" for name in ("q", "o") for part in "ab"
    }
    assert trained_names(with_lora(True), False) == {
        f"{where}.lora['{name}'].{part}"
        for where, names in ((".layers", ("q", "o")), (".vision.layers", ("qkv", "o")))
        for name in names
        for part in "ab"
    }


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        (MODEL, True, True),
        (MODEL, False, False),
        (with_lora(), False, False),
        (with_lora(vision=True), False, True),
        (dataclasses.replace(MODEL, vision=None), True, False),
    ],
)
def test_whether_images_are_encoded_again(model, asked, expected):
    assert trains_vision(model, asked) is expected


def test_join_undoes_split(mesh1):
    params = init_params(MODEL, jax.random.key(0), mesh1)
    mine, frozen = split(params, trainable_mask(MODEL, False))
    assert not jax.tree.leaves(mine.vision) and len(jax.tree.leaves(frozen)) == len(
        jax.tree.leaves(params.vision)
    )
    whole = join(mine, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True))


@pytest.mark.parametrize("model", [MODEL, with_lora()])
def test_the_frozen_have_no_optimiser_state(mesh1, model):
    mask = trainable_mask(model, False)
    specs = split(decoder.abstract_params(model), mask)[0]
    tx = make_optimizer(OptimizerConfig(), 10, decay_mask(specs))
    state = abstract_state(model, tx, mesh1, mask)
    moments = optax.tree.get(state.opt_state, "mu")
    assert jax.tree.map(lambda x: x.shape, moments) == jax.tree.map(lambda s: s.shape, specs)
    assert not jax.tree.leaves(moments.vision)
    assert len(jax.tree.leaves(state.params)) == len(mask)


def test_adapters_join_weights_that_stay_the_same_arrays(mesh1):
    params = init_params(MODEL, jax.random.key(0), mesh1)
    model = with_lora()
    more = add_adapters(params, model, jax.random.key(1), mesh1)
    assert jax.tree.structure(more) == jax.tree.structure(decoder.abstract_params(model))
    kept = split(more, tuple(not on for on in trainable_mask(model, False)))[0]
    assert all(a is b for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(params), strict=True))
    assert not np.asarray(more.layers.lora["q"].b).any()
