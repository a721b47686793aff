import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import rope
from models.config import RopeScaling

REFERENCE = Path(__file__).parents[1] / "reference" / "decoder.npz"
CASES = (
    "linear",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama3-other-ramp",
    "qwen2.5-7b-yarn",
    "yarn-other-ramp",
    "yarn-given-attention",
    "yarn-no-ramp",
)
SCALINGS = (
    None,
    RopeScaling("linear", 2.0),
    RopeScaling("llama3", 8.0, original_max_position=64),
    RopeScaling("yarn", 4.0, original_max_position=64),
)
K = 8


@pytest.mark.parametrize("name", CASES)
def test_frequencies_equal_those_of_transformers(name):
    """ROPE_INIT_FUNCTIONS works in float32 and we in float64, hence the relative 1e-6."""
    with np.load(REFERENCE) as stored:
        case = json.loads(str(stored[f"rope_case/{name}"]))
        theirs, their_factor = stored[f"rope/{name}"], float(stored[f"rope_factor/{name}"])
    freqs, factor = rope.frequencies(
        case["head_dim"], case["theta"], RopeScaling(**case["scaling"])
    )
    assert freqs.dtype == np.float32 and freqs.shape == (case["head_dim"] // 2,)
    np.testing.assert_allclose(freqs, theirs, rtol=1e-6, atol=0)
    assert factor == pytest.approx(their_factor, rel=1e-12)


def test_every_reference_case_is_read():
    with np.load(REFERENCE) as stored:
        names = {n.removeprefix("rope_case/") for n in stored.files if n.startswith("rope_case/")}
    assert names == set(CASES)


def test_frequencies_by_hand():
    """theta^(-2i/K); linear divides all of them."""
    freqs, factor = rope.frequencies(8, 10_000.0, None)
    np.testing.assert_allclose(freqs, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)
    assert factor == 1.0
    freqs, factor = rope.frequencies(8, 10_000.0, RopeScaling("linear", 4.0))
    np.testing.assert_allclose(freqs, [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6)
    assert factor == 1.0


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones():
    """By hand for theta 100, length 64, K 8: turns 10.19, 3.22, 1.02, 0.32 against the ramp 1..4."""
    freqs, _ = rope.frequencies(8, 100.0, RopeScaling("llama3", 8.0, original_max_position=64))
    plain = 100.0 ** -np.array([0, 0.25, 0.5, 0.75])
    keep = (64 * plain[1:3] / (2 * math.pi) - 1) / 3
    assert (keep > 0).all() and (keep < 1).all()
    np.testing.assert_allclose(freqs[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(freqs[1:3], plain[1:3] * (keep + (1 - keep) / 8), rtol=1e-6)
    np.testing.assert_allclose(freqs[3], plain[3] / 8, rtol=1e-6)


@pytest.mark.parametrize("slot", range(K))
def test_rotation_of_a_unit_vector_by_hand(slot):
    """Slots i and i + K/2 turn in their plane by position x frequency i: the Hugging Face layout."""
    axis, second = slot % (K // 2), slot >= K // 2
    position, angle = 7, 7 * 10_000.0 ** (-2 * axis / K)
    cos, sin = rope.angles(jnp.array([[position]]), K, 10_000.0, None)
    turned = rope.rotate(jnp.eye(K)[slot][None, None, None], cos, sin)[0, 0, 0]
    expected = np.zeros(K)
    expected[slot] = math.cos(angle)
    expected[axis + K // 2 * (not second)] = -math.sin(angle) if second else math.sin(angle)
    np.testing.assert_allclose(turned, expected, atol=1e-6)


@functools.cache
def rotator(scaling):
    """Rotates one vector [K] to an integer position."""

    @jax.jit
    def rotated(x, position):
        cos, sin = rope.angles(position[None, None], K, 10_000.0, scaling)
        return rope.rotate(x[None, None, None], cos, sin)[0, 0, 0]

    return rotated


vectors = st.lists(st.floats(-2, 2, width=32), min_size=K, max_size=K).map(np.float32)
positions = st.integers(0, 400)


@settings(max_examples=60)
@given(st.sampled_from(SCALINGS), vectors, vectors, positions, positions, positions)
def test_dot_products_depend_on_the_difference_of_positions_only(scaling, q, k, one, two, shift):
    rotated = rotator(scaling)
    here = np.dot(rotated(q, one), rotated(k, two))
    there = np.dot(rotated(q, one + shift), rotated(k, two + shift))
    # |q|.|k| <= 32 and a phase near 800 is rounded to 800 x 2^-24 = 5e-5 radians.
    assert there == pytest.approx(here, abs=5e-3)


@settings(max_examples=40)
@given(st.sampled_from(SCALINGS), vectors, positions)
def test_rotation_keeps_the_norm_times_the_attention_factor(scaling, x, position):
    _, factor = rope.frequencies(K, 10_000.0, scaling)
    turned = rotator(scaling)(x, position)
    assert np.linalg.norm(turned) == pytest.approx(factor * np.linalg.norm(x), abs=1e-5)


def test_different_differences_give_different_dot_products():
    """Guards the two properties above against a rotation that does nothing."""
    x = np.linspace(0.1, 1.0, K, dtype=np.float32)
    for scaling in SCALINGS:
        dots = [float(np.dot(rotator(scaling)(x, 0), rotator(scaling)(x, p))) for p in range(4)]
        assert np.abs(np.diff(dots)).min() > 1e-2


def test_position_zero_is_the_identity_and_the_dtype_is_kept():
    x = jnp.linspace(-1, 1, K)
    np.testing.assert_array_equal(rotator(None)(x, 0), x)
    assert rotator(None)(x.astype(jnp.bfloat16), 3).dtype == jnp.bfloat16
    cos, sin = rope.angles(jnp.zeros((2, 3), jnp.int32), K, 10_000.0, SCALINGS[3])
    assert cos.dtype == sin.dtype == jnp.float32 and cos.shape == sin.shape == (2, 3, K // 2)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_scaling_that_needs_a_length_says_so(kind):
    with pytest.raises(ValueError, match=rf"{kind}.*original_max_position.*0"):
        RopeScaling(kind, 4.0)


def test_scaling_of_unknown_kind_is_refused():
    """It must not be read as one of the known kinds."""
    with pytest.raises(ValueError, match="ntk"):
        RopeScaling("ntk", 4.0, original_max_position=64)
    with pytest.raises(ValueError, match="dynamic"):
        dataclasses.replace(SCALINGS[3], kind="dynamic")


@pytest.mark.parametrize("factor", [0.0, -2.0])
def test_scaling_factor_must_be_positive(factor):
    with pytest.raises(ValueError, match="factor"):
        RopeScaling("linear", factor)
