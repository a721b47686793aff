"""Qwen2.5-VL against torch and transformers, point by point: tests/reference/vlm.npz, made by the
script beside it. float32, 2e-5 of the largest value."""

import functools

import jax
import numpy as np
import pytest

from models import decoder
from tests.reference import vlm

VISION = (
    "vision/cos",
    "vision/sin",
    "vision/patch_embed",
    *(f"vision/block/{i}" for i in range(4)),
    "vision/merged",
    "vision/features",
)
TEXT = (
    "text/cos",
    "text/sin",
    "text/embeds",
    *(f"text/layer/{i}" for i in range(3)),
    "text/final",
    "logits",
    "logits_tied",
    "logprobs",
)
GRADIENTS = ("loss", *(f"gradient/{name}" for name in vlm.under("gradient/")))

inputs = functools.cache(vlm.inputs)
vision_points = functools.cache(lambda: vlm.stream_points(inputs()) | vlm.merged_points(inputs()))
text_points = functools.cache(lambda: vlm.text_points(inputs()))
gradient_points = functools.cache(lambda: vlm.gradient_points(inputs()))


def test_every_stored_array_of_a_point_is_compared():
    points = {n for n in vlm.stored() if n.startswith(("vision/", "text/", "logits", "gradient/"))}
    assert points <= {*VISION, *TEXT, *GRADIENTS}


@pytest.mark.parametrize("name", VISION)
def test_vision_tower(name):
    assert vlm.error(name, vision_points()[name]) < vlm.TOLERANCE


@pytest.mark.parametrize("name", TEXT)
def test_decoder_with_images(name):
    """Two images in a row, a row of text alone, and ragged lengths, in one batch."""
    assert vlm.error(name, text_points()[name]) < vlm.TOLERANCE


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_through_decoder_and_tower(name):
    assert vlm.error(name, gradient_points()[name]) < vlm.TOLERANCE


def test_greedy_decoding_from_the_cache():
    """Positions after the prompt go on from its delta, not from its number of tokens."""
    ours = vlm.decode_points(inputs())
    np.testing.assert_array_equal(ours["greedy"], vlm.stored()["greedy"])
    assert vlm.error("greedy_logits", ours["greedy_logits"]) < vlm.TOLERANCE


def test_weights_of_transformers_fill_the_abstract_tree():
    assert jax.tree.map(np.shape, vlm.params()) == jax.tree.map(
        lambda s: s.shape, decoder.abstract_params(vlm.config())
    )
