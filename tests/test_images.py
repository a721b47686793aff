"""Images on the host, against the released processor (tests/reference/vlm.npz) and by their rules."""

import io
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from models.config import VisionConfig
from selfevolve_jax import images
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.buckets import bucket
from tests.reference import vlm

TOKEN = 9
# 4 pixels a patch, 8 a merge unit, 4 x 4 units a window.
TOWER = VisionConfig(
    d_model=8, n_layers=1, n_heads=1, d_ff=8, image_token=TOKEN, full_attention=(), patch=4,
    window=32,
)  # fmt: skip
PUBLISHED = VisionConfig(
    d_model=8, n_layers=1, n_heads=1, d_ff=8, image_token=TOKEN, full_attention=()
)
ALL_IMAGES = tuple(vlm.under("image/"))


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def picture(rows: int, columns: int, tower: VisionConfig = TOWER, seed: int = 0) -> images.Picture:
    """Of rows x columns merge units; no two of its values are the same."""
    h, w = rows * tower.merge, columns * tower.merge
    values = np.random.default_rng(seed).permutation(h * w * tower.patch_dim)
    return images.Picture(values.reshape(h * w, -1).astype(np.float32), (h, w))


def prompt(*parts: int | images.Picture) -> list[int]:
    """Ids: a number is so many text tokens, a picture its image tokens."""
    return [
        token
        for part in parts
        for token in (
            [1] * part
            if isinstance(part, int)
            else [TOKEN] * images.picture_tokens(part.grid, TOWER)
        )
    ]


# Sizes.


def test_smart_resize_gives_the_stored_table():
    for *case, height, width in vlm.stored()["smart_resize"].tolist():
        assert images.smart_resize(*case) == (height, width), case


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from((4, 8, 28)),
    st.integers(1, 100_000),
    st.integers(10, 40),
)
@example(14, 42, 28, 1, 10)
def test_smart_resize_keeps_to_factor_limits_and_shape(height, width, factor, least, times):
    if max(height, width) > 200 * min(height, width):
        return
    # Limits far enough apart, and room for a strip one unit high, so that both can be kept.
    most = times * max(least, 200 * factor**2)
    rows, columns = images.smart_resize(height, width, factor, least, most)
    assert rows % factor == columns % factor == 0
    assert least <= rows * columns <= most
    # The longer side stays the longer one, but for a unit of rounding.
    assert rows <= columns + factor if height < width else columns <= rows + factor


@pytest.mark.parametrize(("height", "width"), [(1, 201), (402, 2), (0, 5), (5, 0)])
def test_a_shape_that_the_model_does_not_take_is_refused(height, width):
    with pytest.raises(UserError, match=rf"height {height} and width {width}"):
        images.smart_resize(height, width, 28, 3136, 12845056)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_pixels": 0}, "images.min_pixels=0"),
        ({"min_pixels": 10, "max_pixels": 9}, "images.max_pixels=9"),
        ({"mean": (0.5, 0.5)}, r"images.mean=\(0.5, 0.5\)"),
        ({"std": (0.5, 0.0, 0.5)}, r"images.std=\(0.5, 0.0, 0.5\)"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        images.ImageConfig(**fields)


# Pixels.


@pytest.mark.parametrize("name", ALL_IMAGES)
def test_patches_are_those_of_the_released_processor(name):
    """RGB, grey, transparent and palette files; larger and smaller than the limits; to the bit."""
    tower = vlm.config().vision
    ours = images.preprocess(
        images.load_image(vlm.stored()[f"image/{name}"].tobytes()), vlm.LIMITS, tower
    )
    assert ours.grid == tuple(vlm.stored()[f"grid/{name}"])
    assert ours.patches.dtype == np.float32
    np.testing.assert_array_equal(ours.patches, vlm.stored()[f"pixels/{name}"])


@pytest.mark.parametrize("name", tuple(vlm.under("pixels14/")))
def test_patches_of_the_published_size(name):
    opened = images.load_image(vlm.stored()[f"image/{name}"].tobytes())
    ours = images.preprocess(opened, images.ImageConfig(), PUBLISHED)
    assert ours.grid == tuple(vlm.stored()[f"grid14/{name}"])
    np.testing.assert_array_equal(ours.patches, vlm.stored()[f"pixels14/{name}"])


def test_an_image_that_is_not_loaded_from_a_file_is_converted_too():
    """A picture drawn by a task, with transparency."""
    drawn = Image.fromarray(noise(16, 16, 4), "RGBA")
    config = images.ImageConfig(min_pixels=64)
    direct = images.preprocess(drawn, config, TOWER)
    loaded = images.preprocess(images.load_image(file_of(drawn)), config, TOWER)
    np.testing.assert_array_equal(direct.patches, loaded.patches)


def test_exif_orientation_is_applied():
    upright = Image.fromarray(noise(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = images.load_image(file_of(upright, exif=exif))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(upright), -1))


def test_sixteen_bits_are_scaled_and_not_clipped():
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    loaded = np.asarray(images.load_image(file_of(Image.fromarray(grey))))
    np.testing.assert_array_equal(loaded, np.repeat((grey // 256)[..., None], 3, axis=-1))


# Files that are no good.


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        images.load_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match=f"{tmp_path.name} cannot be read"):
        images.load_image(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, kind, part):
    whole = file_of(Image.fromarray(noise(40, 40)), kind)
    path = tmp_path / "cut"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UserError, match=r"cut (is damaged or cut short|is not an image)"):
        images.load_image(path)


def test_text_an_empty_file_and_random_bytes_are_no_images(tmp_path):
    path = tmp_path / "note.png"
    path.write_text("this is a note")
    with pytest.raises(UserError, match=r"note\.png is not an image"):
        images.load_image(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"note\.png is empty"):
        images.load_image(path)
    with pytest.raises(UserError, match="image of 5 bytes is not an image"):
        images.load_image(b"\x00\x01\x02\x03\x04")


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]))
def test_no_damage_ends_in_another_error(damage, kind):
    """Bytes thrown over a file give an image or a UserError."""
    whole = bytearray(file_of(Image.fromarray(noise(6, 6)), kind))
    for i in range(0, len(damage) - 1, 2):
        whole[damage[i] * len(whole) // 256] = damage[i + 1]
    try:
        loaded = images.load_image(bytes(whole))
    except UserError:
        return
    assert loaded.mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_what_moves_is_refused(kind):
    frames = [Image.fromarray(noise(8, 8) // n) for n in (1, 2, 3)]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"has 3 frames .* only still images"):
        images.load_image(data)


@pytest.mark.parametrize(
    "head", [b"\x00\x00\x00\x20ftypisom", b"RIFF\x00\x00\x00\x00AVI LIST", b"\x1a\x45\xdf\xa3"]
)
def test_a_video_is_refused_as_one(head):
    with pytest.raises(UserError, match="is a video, and only still images"):
        images.load_image(head + bytes(64))


def test_an_image_of_too_many_pixels_is_refused():
    """A header that claims 60,000 x 60,000; nothing of that size is made."""
    data = bytearray(file_of(Image.fromarray(noise(4, 4)), "BMP"))
    data[18:26] = np.array([60_000, 60_000], "<i4").tobytes()
    with pytest.raises(UserError, match="too many pixels"):
        images.load_image(bytes(data))


def test_pixels_of_32_bits_are_refused():
    data = file_of(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(UserError, match="32 bits"):
        images.load_image(data)


# Prompts.


def test_prompt_ids_positions_and_deltas_are_the_stored_ones():
    stored, tower = vlm.stored(), vlm.config().vision
    ends = np.cumsum(stored["lengths"])[:-1]
    positions = np.split(stored["positions"], ends)
    for r, tokens in enumerate(np.split(stored["tokens"], ends)):
        grids = [tuple(stored[f"grid/{name}"]) for name in vlm.ROWS[r]]
        ours, delta = images.prompt_positions(tokens.tolist(), grids, tower)
        np.testing.assert_array_equal(ours, positions[r])
        assert ours.dtype == np.int32 and delta == stored["deltas"][r]


def test_an_image_has_as_many_tokens_as_the_released_processor_gives_it():
    stored, tower = vlm.stored(), vlm.config().vision
    grids = iter(tuple(stored[f"grid/{name}"]) for row in vlm.ROWS for name in row)
    expanded = []
    for row in json.loads(str(stored["prompt"])):
        for token in row:
            image = token == tower.image_token
            expanded += [token] * (images.picture_tokens(next(grids), tower) if image else 1)
    assert expanded == stored["tokens"].tolist()


def test_positions_by_hand():
    """Two text tokens, 2 x 3 units, one text token, one unit right after, one text token."""
    a, b = picture(2, 3), picture(1, 1)
    tokens = prompt(2, a, 1, b, 1)
    positions, delta = images.prompt_positions(tokens, [a.grid, b.grid], TOWER)
    expected = [
        *[(0, 0, 0), (1, 1, 1)],
        *[(2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 3, 3), (2, 3, 4)],
        *[(5, 5, 5), (6, 6, 6), (7, 7, 7)],
    ]
    assert positions.tolist() == [list(p) for p in expected]
    assert delta == 8 - 11


prompts = st.lists(
    st.one_of(st.integers(0, 4), st.builds(picture, st.integers(1, 6), st.integers(1, 6))),
    max_size=6,
)


@given(prompts)
def test_positions_follow_their_rules(parts):
    """Text: three equal ones, each one more than the last. An image: no gap before or after it, and
    what follows starts beyond its longer side."""
    pictures = [p for p in parts if isinstance(p, images.Picture)]
    tokens = prompt(*parts)
    positions, delta = images.prompt_positions(tokens, [p.grid for p in pictures], TOWER)
    assert positions.shape == (len(tokens), 3)
    at, following = 0, 0
    for part in parts:
        if isinstance(part, int):
            seen = positions[at : at + part]
            assert (seen == following + np.arange(part)[:, None]).all()
            following, at = following + part, at + part
        else:
            rows, columns = part.grid[0] // 2, part.grid[1] // 2
            seen = positions[at : at + rows * columns].reshape(rows, columns, 3) - following
            assert (seen[..., 0] == 0).all()
            assert (seen[..., 1] == np.arange(rows)[:, None]).all()
            assert (seen[..., 2] == np.arange(columns)).all()
            following, at = following + max(rows, columns), at + rows * columns
    assert following == delta + len(tokens)
    assert following == (positions.max() + 1 if len(tokens) else 0)


def test_a_prompt_that_does_not_match_its_images_is_refused():
    a = picture(2, 3)
    for tokens, have in ((prompt(2, a)[:-1], 5), ([*prompt(a), TOKEN], 7), (prompt(4), 0)):
        with pytest.raises(UserError, match=rf"do not match: prompt has {have} .* give 6 feat"):
            images.prompt_positions(tokens, [a.grid], TOWER)
    with pytest.raises(UserError, match=r"row 1 has 6 image tokens, and its 0 image\(s\) give 0"):
        images.layout([[a], []], [prompt(a), prompt(a)], TOWER)


def test_text_among_the_tokens_of_an_image_is_refused():
    a, b = picture(2, 2), picture(1, 2)
    with pytest.raises(UserError, match="among the 4 image tokens of its image 0, at 0 to 4"):
        images.prompt_positions([TOKEN, TOKEN, 1, TOKEN, TOKEN], [a.grid], TOWER)
    # The two images in the other order: as many tokens, but not those of each.
    with pytest.raises(UserError, match="among the 4 image tokens of its image 0"):
        images.layout([[a, b]], [prompt(b, 1, a)], TOWER)


# Rows.


@given(st.lists(prompts, min_size=1, max_size=3))
def test_layout_puts_every_unit_in_one_place_and_the_index_finds_it(rows):
    """The index is a bijection from image tokens to the units that are not padding; through it the
    patches of each token are the picture's, in order."""
    pictures = [[p for p in row if isinstance(p, images.Picture)] for row in rows]
    tokens = [prompt(*row) for row in rows]
    pixels, index = images.layout(pictures, tokens, TOWER)
    R, unit, size = len(rows), TOWER.merge**2, TOWER.window_units
    ids = pixels.image_ids_RxP.reshape(R, -1, unit)
    assert (ids == ids[:, :, :1]).all()
    windows = ids.shape[1] // size
    assert windows == bucket(windows, 1)
    for r in range(R):
        used = index[r][index[r] >= 0]
        assert index[r].dtype == np.int32
        assert ((index[r] >= 0) == (np.array(tokens[r], int) == TOKEN)).all()
        assert sorted(used) == np.flatnonzero(ids[r, :, 0] >= 0).tolist()
        patches = pixels.patches_RxPxC[r].reshape(-1, unit, TOWER.patch_dim)[used]
        coords = pixels.coords_RxPx2[r].reshape(-1, unit, 2)[used]
        at = 0
        for number, p in enumerate(pictures[r]):
            n, (h, w) = images.picture_tokens(p.grid, TOWER), p.grid
            mine = slice(at, at + n)
            np.testing.assert_array_equal(patches[mine].reshape(h * w, -1), p.patches)
            assert (ids[r, used[mine]] == number).all()
            # Patches in the order of Picture lie at these coordinates of the image.
            natural = [
                (2 * i + a, 2 * j + b)
                for i in range(h // 2)
                for j in range(w // 2)
                for a in range(2)
                for b in range(2)
            ]
            assert coords[mine].reshape(-1, 2).tolist() == [list(c) for c in natural]
            # One window for each square of the image that a window covers, and no other.
            squares = [tuple(c) for c in coords[mine][:, 0] // (TOWER.window // TOWER.patch)]
            of_window = [int(u) // size for u in used[mine]]
            pairs = set(zip(of_window, squares, strict=True))
            assert len(pairs) == len(set(of_window)) == len(set(squares))
            at += n


def test_window_order_is_the_stored_one():
    """Read without padding, units stand in the reference's window order."""
    batch = vlm.inputs()
    real = np.flatnonzero((batch.pixels.image_ids_RxP[:, ::4] >= 0).reshape(-1))
    U = batch.pixels.image_ids_RxP.shape[1] // 4
    rows, columns = np.nonzero(batch.index_BxT >= 0)
    natural = rows * U + batch.index_BxT[rows, columns]
    order = np.argsort(natural)
    np.testing.assert_array_equal(natural[order], real)
    np.testing.assert_array_equal(order, vlm.stored()["window_order"])


def test_windows_come_in_buckets_and_rows_may_have_no_image():
    shapes = set()
    for n in range(1, 20):
        many = [picture(1, 1) for _ in range(n)]
        pixels, index = images.layout([many, []], [prompt(*many), prompt(3)], TOWER)
        shapes.add(pixels.patches_RxPxC.shape)
        assert (index[1] == -1).all()
        assert (pixels.image_ids_RxP[1] == -1).all() and not pixels.patches_RxPxC[1].any()
    assert sorted(shape[1] // 64 for shape in shapes) == [1, 2, 3, 4, 6, 8, 12, 16, 24]
