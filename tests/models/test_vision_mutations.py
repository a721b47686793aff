"""Each known mistake, made on purpose, must be seen by the comparison with transformers: parity is
only as good as what it refuses. The comparisons and the tolerance are those of test_vlm_parity.py."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import rope, vision
from selfevolve_jax import images
from tests.reference import vlm

attention = jax.nn.dot_product_attention


def tower_error(point="vision/merged", batch=None, cfg=None) -> float:
    return vlm.error(point, vlm.merged_points(batch or vlm.inputs(), cfg)[point])


def decoder_error(batch=None) -> float:
    return vlm.error("logits", vlm.logits_points(batch or vlm.inputs())["logits"])


def decode_error(batch=None) -> float:
    return vlm.error("greedy_logits", vlm.decode_points(batch or vlm.inputs())["greedy_logits"])


def test_without_a_mistake_the_comparisons_pass():
    assert tower_error() < vlm.TOLERANCE
    assert tower_error("vision/features") < vlm.TOLERANCE
    assert decoder_error() < vlm.TOLERANCE
    assert decode_error() < vlm.TOLERANCE


# The vision tower.


def eps_of_other_models(patch):
    patch.setattr(vision, "NORM_EPS", 1e-5)


def tanh_gelu(patch):
    exact = jax.nn.gelu
    patch.setattr(jax.nn, "gelu", lambda x, approximate: exact(x, approximate=True))


def bf16_angles(patch):
    def angles(coords_RxPx2, cfg):
        freqs, _ = rope.frequencies(cfg.head_dim // 2, vision.ROPE_THETA, None)
        phase = coords_RxPx2[..., None].astype(jnp.bfloat16) * freqs.astype(jnp.bfloat16)
        phase = phase.reshape(*phase.shape[:-2], -1)
        return jnp.cos(phase).astype(jnp.float32), jnp.sin(phase).astype(jnp.float32)

    patch.setattr(vision, "rotary_angles", angles)


def one_segment_for_all_images(patch):
    per_image = vision.image_attention
    patch.setattr(
        vision,
        "image_attention",
        lambda q, k, v, image_RxP: per_image(q, k, v, jnp.minimum(image_RxP, 0)),
    )


def height_and_width_swapped(patch):
    coords = images._coords
    patch.setattr(images, "_coords", lambda grid, tower: coords(grid, tower)[:, ::-1])


def sliding_band(patch):
    """Patches see those up to 64 places away in their image, in place of those in their window."""
    ids = jnp.asarray(vlm.inputs().pixels.image_ids_RxP)
    R, P = ids.shape
    near = jnp.abs(jnp.arange(P)[:, None] - jnp.arange(P)) <= 64
    same = (ids[:, :, None] == ids[:, None, :])[:, None] & near

    def banded(q, k, v, mask):
        if q.shape[0] == R:  # of a full-attention layer
            return attention(q, k, v, mask=mask)
        rows = lambda x: x.reshape(R, P, *x.shape[2:])  # noqa: E731
        return attention(rows(q), rows(k), rows(v), mask=same).reshape(q.shape)

    patch.setattr(jax.nn, "dot_product_attention", banded)


def padding_attended(patch):
    """The places that an image's edge cuts off a window are seen as if they were patches."""

    def careless(q, k, v, mask):
        return attention(q, k, v, mask=jnp.ones_like(mask) if mask.shape[2] == 1 else mask)

    patch.setattr(jax.nn, "dot_product_attention", careless)


def channels_last_in_a_patch(patch):
    made = images.preprocess

    def wrong(image, config, tower):
        picture = made(image, config, tower)
        shape = (len(picture.patches), 3, tower.temporal, tower.patch, tower.patch)
        turned = picture.patches.reshape(shape).transpose(0, 2, 3, 4, 1)
        return images.Picture(turned.reshape(len(turned), -1), picture.grid)

    patch.setattr(images, "preprocess", wrong)


def patches_row_by_row(patch):
    """Rows of the whole image, where the four patches of a merge unit should be side by side."""
    made = images.preprocess

    def wrong(image, config, tower):
        picture = made(image, config, tower)
        order = np.lexsort(images._coords(picture.grid, tower).T[::-1])
        return images.Picture(picture.patches[order], picture.grid)

    patch.setattr(images, "preprocess", wrong)


@pytest.mark.parametrize(
    ("mistake", "least"),
    [
        (eps_of_other_models, vlm.TOLERANCE),
        (tanh_gelu, vlm.TOLERANCE),
        (bf16_angles, vlm.TOLERANCE),
        (one_segment_for_all_images, 1e-2),
        (height_and_width_swapped, 1e-2),
        (sliding_band, 1e-2),
        (padding_attended, 1e-2),
        (channels_last_in_a_patch, 1e-2),
        (patches_row_by_row, 1e-2),
    ],
)
def test_a_mistake_in_the_tower_is_seen(monkeypatch, mistake, least):
    mistake(monkeypatch)
    assert tower_error() > least


def test_full_attention_in_window_layers_is_seen():
    cfg = vlm.config()
    everywhere = tuple(range(cfg.vision.n_layers))
    wrong = replace(cfg, vision=replace(cfg.vision, full_attention=everywhere))
    assert tower_error(cfg=wrong) > 1e-2


def test_tokens_left_in_window_order_are_seen():
    """The order of the windows is never undone: each row's units are taken as they lie."""
    batch = vlm.inputs()
    index = batch.index_BxT.copy()
    for row in index:
        row[row >= 0] = np.sort(row[row >= 0])
    assert tower_error("vision/features", replace(batch, index_BxT=index)) > 1e-2


# The decoder.


def interleaved_sections(patch):
    """The three coordinates dealt out in turn, as Qwen3-VL does, until a section is used up."""
    cfg = vlm.config()
    left, axes = list(cfg.mrope_sections), []
    while len(axes) < cfg.head_dim // 2:
        for axis in range(3):
            if left[axis]:
                left[axis] -= 1
                axes.append(axis)

    def angles(positions, head_dim, theta, scaling, sections=None):
        freqs, factor = rope.frequencies(head_dim, theta, scaling)
        phase = positions[..., np.array(axes)].astype(jnp.float32) * freqs
        return jnp.cos(phase) * factor, jnp.sin(phase) * factor

    patch.setattr(rope, "angles", angles)


def test_interleaved_sections_are_seen(monkeypatch):
    interleaved_sections(monkeypatch)
    assert decoder_error() > 1e-2


def test_positions_that_count_tokens_are_seen():
    """M-RoPE left out: what newer versions of transformers do where a field is not passed."""
    batch = vlm.inputs()
    counted = np.broadcast_to(
        np.arange(batch.tokens_BxT.shape[1], dtype=np.int32)[:, None], batch.positions_BxTx3.shape
    )
    assert decoder_error(replace(batch, positions_BxTx3=counted)) > 1e-2


def test_a_forgotten_delta_is_seen():
    batch = vlm.inputs()
    assert decode_error(replace(batch, deltas_B=np.zeros_like(batch.deltas_B))) > 1e-2
