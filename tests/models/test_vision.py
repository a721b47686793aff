"""The vision tower by its invariances: padding, neighbours, chunks, devices and shapes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import vision
from selfevolve_jax import compiles, images, sharding
from selfevolve_jax.rollout.buckets import bucket
from tests.reference import vlm

# The reference's model with one layer of each kind.
MODEL = replace(vlm.config(), vision=replace(vlm.config().vision, n_layers=2, full_attention=(1,)))
TOWER = MODEL.vision
UNIT, WINDOW = TOWER.merge**2, TOWER.window_units * TOWER.merge**2
# Rows of images, each a number of merge units down and across: ragged windows, a whole one, several
# images in a row, a row without any.
ROWS = (((5, 6), (1, 3)), ((4, 4),), (), ((2, 7), (1, 1), (3, 3)))


def params() -> vision.VisionParams:
    tower = vlm.params().vision
    return replace(tower, layers=jax.tree.map(lambda x: x[: TOWER.n_layers], tower.layers))


def picture(rows: int, columns: int) -> images.Picture:
    h, w = rows * TOWER.merge, columns * TOWER.merge
    values = np.random.default_rng((rows, columns)).normal(size=(h * w, TOWER.patch_dim))
    return images.Picture(values.astype(np.float32), (h, w))


def layout(rows) -> tuple[vision.Pixels, list[np.ndarray]]:
    pictures = [[picture(*size) for size in row] for row in rows]
    tokens = [[TOWER.image_token] * sum(h * w for h, w in row) for row in rows]
    return images.layout(pictures, tokens, TOWER)


@pytest.fixture(scope="module")
def encode():
    """Compiled once for each shape."""
    run = jax.jit(lambda tower, pixels: vision.encode(tower, pixels, MODEL))
    with jax.default_matmul_precision("highest"):
        yield lambda pixels: np.asarray(run(params(), pixels))


@pytest.fixture(scope="module")
def plain(encode):
    return encode(layout(ROWS)[0])


def real(pixels: vision.Pixels) -> np.ndarray:
    return np.asarray(pixels.image_ids_RxP) >= 0


def units(pixels: vision.Pixels) -> np.ndarray:
    return real(pixels)[:, ::UNIT]


def with_garbage(pixels: vision.Pixels) -> vision.Pixels:
    rng = np.random.default_rng(1)
    there = real(pixels)[..., None]
    values = rng.normal(0, 1000, pixels.patches_RxPxC.shape).astype(np.float32)
    places = rng.integers(-99, 99, pixels.coords_RxPx2.shape).astype(np.int32)
    return replace(
        pixels,
        patches_RxPxC=np.where(there, pixels.patches_RxPxC, values),
        coords_RxPx2=np.where(there, pixels.coords_RxPx2, places),
    )


def test_garbage_at_padding_changes_nothing(encode, plain):
    pixels, _ = layout(ROWS)
    assert not real(pixels)[2].any() and 0 < real(pixels).mean() < 1
    dirty = encode(with_garbage(pixels))
    np.testing.assert_array_equal(dirty[units(pixels)], plain[units(pixels)])
    assert np.isfinite(plain).all()  # also where a window or a row is all padding


def test_more_windows_of_padding_change_nothing(encode, plain):
    pixels, _ = layout(ROWS)
    wide = [(0, 0), (0, 3 * WINDOW)]
    longer = vision.Pixels(
        np.pad(pixels.patches_RxPxC, [*wide, (0, 0)]),
        np.pad(pixels.coords_RxPx2, [*wide, (0, 0)]),
        np.pad(pixels.image_ids_RxP, wide, constant_values=-1),
    )
    ours = encode(longer)[:, : plain.shape[1]]
    np.testing.assert_allclose(ours[units(pixels)], plain[units(pixels)], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("row", "number"), [(0, 0), (0, 1), (3, 1), (3, 2)])
def test_an_image_is_the_same_alone_as_beside_others(encode, plain, row, number):
    before = sum(h * w for h, w in ROWS[row][:number])
    rows, columns = ROWS[row][number]
    places = layout(ROWS)[1][row][before : before + rows * columns]
    # Four rows, so that most sizes share a compiled shape.
    pixels, index = layout(((ROWS[row][number],), (), (), ()))
    alone = encode(pixels)[0, index[0]]
    np.testing.assert_allclose(alone, plain[row, places], atol=1e-6, rtol=1e-5)


def test_rows_do_not_depend_on_their_batch(encode, plain):
    pixels, _ = layout(ROWS)
    order = np.array([3, 1, 0, 2])
    turned = encode(jax.tree.map(lambda x: x[order], pixels))
    np.testing.assert_array_equal(turned[units(pixels)[order]], plain[order][units(pixels)[order]])


def test_what_one_image_holds_reaches_no_other(encode, plain):
    """In either kind of layer; and it does reach the image's own tokens."""
    pixels, _ = layout(ROWS)
    changed = pixels.patches_RxPxC.copy()
    changed[pixels.image_ids_RxP == 1] += 1
    ours = encode(replace(pixels, patches_RxPxC=changed))
    of_second = (pixels.image_ids_RxP == 1)[:, ::UNIT]
    others = units(pixels) & ~of_second
    np.testing.assert_array_equal(ours[others], plain[others])
    assert np.abs(ours[of_second] - plain[of_second]).min(axis=-1).max() > 1e-3


def test_coordinates_count_by_their_differences(encode, plain):
    """The embedding is relative: all of an image's patches moved together change nothing."""
    pixels, _ = layout(ROWS)
    moved = encode(replace(pixels, coords_RxPx2=pixels.coords_RxPx2 + np.int32([3, 5])))
    np.testing.assert_allclose(
        moved[units(pixels)], plain[units(pixels)], atol=2e-5 * np.abs(plain).max(), rtol=0
    )


@pytest.mark.parametrize("chunk", [64, 100])
def test_chunks_of_queries_change_nothing(monkeypatch, chunk):
    """Also a chunk that does not divide the number of patches, and in the gradient."""
    pixels, _ = layout(ROWS)
    rng = np.random.default_rng(0)
    shape = (*pixels.image_ids_RxP.shape, TOWER.n_heads, TOWER.head_dim)
    q, k, v, weight = (rng.normal(size=shape).astype(np.float32) for _ in range(4))
    there = real(pixels)[..., None, None]

    def run(q, k, v):
        def loss(q, k, v):
            out = vision.image_attention(q, k, v, jnp.asarray(pixels.image_ids_RxP))
            return (out * weight * there).sum(), out

        grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return jnp.where(there, out, 0), grads

    assert pixels.image_ids_RxP.shape[1] > chunk
    with jax.default_matmul_precision("highest"):
        whole = jax.jit(lambda *x: run(*x))(q, k, v)
        monkeypatch.setattr(vision, "QUERY_CHUNK", chunk)
        pieces = jax.jit(lambda *x: run(*x))(q, k, v)
    for ours, theirs in zip(jax.tree.leaves(pieces), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_no_gradient_at_padding():
    """Exactly zero, and the weights' gradients do not see what stands there."""
    pixels, _ = layout(ROWS)
    weight = np.random.default_rng(0).normal(size=(*units(pixels).shape, MODEL.d_model))

    @jax.jit
    def gradients(tower, patches, pixels, there):
        def loss(tower, patches):
            tokens = vision.encode(tower, replace(pixels, patches_RxPxC=patches), MODEL)
            return jnp.where(there[..., None], tokens * weight, 0.0).sum()

        return jax.grad(loss, argnums=(0, 1))(tower, patches)

    with jax.default_matmul_precision("highest"):
        clean = gradients(params(), pixels.patches_RxPxC, pixels, units(pixels))
        dirty_pixels = with_garbage(pixels)
        dirty = gradients(params(), dirty_pixels.patches_RxPxC, dirty_pixels, units(pixels))
    assert not np.asarray(dirty[1])[~real(pixels)].any()
    assert np.abs(np.asarray(dirty[1])[real(pixels)]).min(axis=-1).max() > 0
    for ours, theirs in zip(jax.tree.leaves(dirty[0]), jax.tree.leaves(clean[0]), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=1e-5)


def test_eight_devices_give_what_one_gives(plain, mesh8):
    """Rows over data and fsdp, heads and the MLP over tensor."""
    pixels, _ = layout(ROWS)
    specs = vision.abstract_vision_params(TOWER, MODEL.d_model, "float32", MODEL.lora)
    tower = jax.device_put(params(), sharding.tree_shardings(specs, mesh8))
    constrain = sharding.constrainer(mesh8)
    run = jax.jit(lambda tower, pixels: vision.encode(tower, pixels, MODEL, constrain))
    with jax.default_matmul_precision("highest"):
        ours = run(tower, sharding.put_batch(pixels, mesh8))
    assert len(ours.sharding.device_set) == 8
    np.testing.assert_allclose(
        np.asarray(ours)[units(pixels)], plain[units(pixels)], atol=1e-6, rtol=1e-5
    )


def test_a_stream_of_random_sizes_compiles_once_for_each_bucket():
    rng = np.random.default_rng(0)
    cfg = replace(MODEL, vision=replace(TOWER, n_layers=1, full_attention=()))
    tower = replace(params(), layers=jax.tree.map(lambda x: x[:1], params().layers))
    run = jax.jit(lambda tower, pixels: vision.encode(tower, pixels, cfg))
    sizes = [tuple(int(n) for n in rng.integers(1, 12, 2)) for _ in range(40)]
    seen = set()
    with compiles.count() as compiled:
        for size in sizes:
            pixels, _ = layout(((size,), ((1, 1),)))
            seen.add(pixels.image_ids_RxP.shape[1] // WINDOW)
            run(tower, pixels).block_until_ready()
        assert compiled() == len(seen)
    # Eleven units across are three windows: at most nine, which the bucket of twelve holds.
    assert len(set(sizes)) > 30 and seen <= {bucket(n, 1) for n in range(1, 10)}


def test_bfloat16_keeps_angles_in_float32():
    """bf16 has 8 bits: coordinates beyond 256 would fall together."""
    coords = np.array([[[0, 300], [1, 301]]], np.int32)
    cos, sin = vision.rotary_angles(jnp.asarray(coords), TOWER)
    assert cos.dtype == sin.dtype == jnp.float32
    freqs = 10_000.0 ** (-np.arange(0, TOWER.head_dim // 2, 2) / (TOWER.head_dim // 2))
    phase = (coords[..., None] * freqs).reshape(1, 2, -1)
    np.testing.assert_allclose(cos, np.cos(phase), atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(phase), atol=2e-5)


def test_bfloat16_is_near_float32(plain):
    pixels, _ = layout(ROWS)
    half = replace(MODEL, dtype="bfloat16")
    run = jax.jit(lambda tower, pixels: vision.encode(tower, pixels, half))
    ours = run(params(), pixels)
    assert ours.dtype == jnp.bfloat16
    there = units(pixels)
    apart = np.asarray(ours, np.float32)[there] - plain[there]
    assert np.sqrt(np.mean(apart**2) / np.mean(plain[there] ** 2)) < 0.03
