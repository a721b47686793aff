"""Images on the host: files to patches, prompt positions, and the rows that the vision tower reads.

Everything follows the released processor of Qwen2.5-VL (arXiv 2502.13923) to the bit, so that a
model sees here what it saw in training. Only still images; a video is refused.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from models.config import VisionConfig
from models.vision import Pixels
from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.buckets import bucket

# Beyond this ratio of the long side to the short one the released processor refuses an image.
MAX_ASPECT = 200


@dataclass(frozen=True)
class ImageConfig:
    """How a policy's images are made ready; part of the policy, as its weights were trained on it.

    min_pixels, max_pixels: the area that an image is resized into. mean, std: by channel (RGB), of
    values between 0 and 1. The defaults are those of the released checkpoints.
    """

    min_pixels: int = 3136
    max_pixels: int = 12_845_056
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise UserError(
                f"images.min_pixels={self.min_pixels}, images.max_pixels={self.max_pixels}: give "
                "two positive areas, the first not above the second."
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise UserError(f"images.{name}={getattr(self, name)}: give three, for R, G and B.")
        if min(self.std) <= 0:
            raise UserError(f"images.std={self.std}: each must be positive, as it divides.")


@dataclass(frozen=True, eq=False)
class Picture:
    """A preprocessed image. patches: float32 [h·w, C], a merge unit's patches side by side, units
    row by row, as are the patches in a unit. grid: (h, w) in patches."""

    patches: np.ndarray
    grid: tuple[int, int]


def load_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """An RGB image, upright as its EXIF orientation says, from a path or the bytes of a file.

    UserError if it is missing, no image, cut short, too large to open safely, or moves.
    """
    if isinstance(source, bytes):
        name, data = f"image of {len(source)} bytes", source
    else:
        name = f"image {os.fspath(source)}"
        try:
            data = epath.Path(source).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{name} does not exist. Check the path.") from None
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}.") from None
    if not data:
        raise UserError(f"{name} is empty. Save or download it again.")
    try:
        opened = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise UserError(f"{name} has too many pixels to open safely. Make it smaller.") from None
    except Exception:  # decoders of damaged headers raise all kinds
        if _looks_like_video(data):
            raise UserError(
                f"{name} is a video, and only still images are supported. Give frames as images."
            ) from None
        raise UserError(
            f"{name} is not an image that Pillow can read. Give a PNG, JPEG, WebP, GIF or BMP."
        ) from None
    try:
        frames = getattr(opened, "n_frames", 1)
        # An MPO is a camera's JPEG: one photograph, then previews or a second eye's view of it.
        if frames > 1 and opened.format != "MPO":
            raise UserError(
                f"{name} has {frames} frames ({opened.format}), and only still images are "
                "supported. Give the frames that matter as images of their own."
            )
        opened.load()
        return to_rgb(ImageOps.exif_transpose(opened), name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} is damaged or cut short ({error}). Save or download it again."
        ) from None


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Eight bits for each of R, G and B; what is transparent shows white behind it.

    UserError for pixels of 32 bits, whose range nothing states.
    """
    if image.mode.startswith("I;16"):
        # A plain conversion would clip at 255, which turns most of a 16-bit image white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(
            f"{name} has pixels of 32 bits (mode {image.mode}). Save it with 8 bits a channel."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The (height, width) nearest to the given one, in pixels, of which each is a multiple of
    `factor` and the product lies between the limits (an extreme shape may miss them by a little).

    UserError for an empty image and for an aspect ratio over 200.
    """
    if min(height, width) < 1:
        raise UserError(f"image of height {height} and width {width} has no pixels.")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise UserError(
            f"image of height {height} and width {width}: one side is more than {MAX_ASPECT} times "
            "the other, which the model does not take. Crop it."
        )
    # Halves round to even, as Python's `round` does.
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns


def preprocess(image: Image.Image, config: ImageConfig, vision: VisionConfig) -> Picture:
    """Resizes (bicubic), normalises and cuts into patches; a patch's values run over (channel,
    frame, row, column), with a copy of the still image in each frame."""
    image = to_rgb(image)
    height, width = smart_resize(
        image.height, image.width, vision.unit, config.min_pixels, config.max_pixels
    )
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    # float64 for the scale and float32 for the rest, as in the released processor.
    values = (np.asarray(resized).astype(np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(each, np.float32) for each in (config.mean, config.std))
    values = (values - mean) / std
    m, p = vision.merge, vision.patch
    h, w = height // p, width // p
    cut = values.reshape(h // m, m, p, w // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    cut = np.repeat(cut[:, :, :, :, :, None], vision.temporal, axis=5)
    return Picture(np.ascontiguousarray(cut.reshape(h * w, vision.patch_dim)), (h, w))


def picture_tokens(grid: tuple[int, int], vision: VisionConfig) -> int:
    """Merge units of an image, each of which is one token of the prompt."""
    return grid[0] * grid[1] // vision.merge**2


def prompt_positions(
    tokens: Sequence[int], grids: Sequence[tuple[int, int]], vision: VisionConfig
) -> tuple[np.ndarray, int]:
    """M-RoPE (arXiv 2409.12191, section 2.1): (time, height, width) of each token, int32 [L, 3].

    Text moves all three on by one. The tokens of an image share its start in time and count rows
    and columns from there; what follows starts after the longer side. Also returns delta = largest
    position + 1 − L: token number n after the prompt has position n + delta on all three.
    UserError if the image tokens are not those of the images.
    """
    starts = _image_starts(tokens, grids, vision, "prompt")
    positions = np.zeros((len(tokens), 3), np.int32)
    done = current = 0
    for start, (h, w) in zip(starts, grids, strict=True):
        rows, columns = h // vision.merge, w // vision.merge
        text = start - done
        positions[done:start] = np.arange(current, current + text)[:, None]
        current, done = current + text, start + rows * columns
        places = np.indices((rows, columns)).reshape(2, -1).T
        positions[start:done, 0] = current
        positions[start:done, 1:] = current + places
        current += max(rows, columns)
    rest = len(tokens) - done
    positions[done:] = np.arange(current, current + rest)[:, None]
    return positions, current + rest - len(tokens)


def layout(
    pictures_per_row: Sequence[Sequence[Picture]],
    tokens_per_row: Sequence[Sequence[int]],
    vision: VisionConfig,
    least: int = 1,
) -> tuple[Pixels, list[np.ndarray]]:
    """The images of R rows as `Pixels` of numpy arrays, and for each row an int32 array [L] with
    the place on the U axis of `vision.encode`'s output of every image token, −1 for text.

    U is in window order with every window padded to its full size, which the index undoes. Rows are
    padded to one number of windows from a few buckets, at least so many; a row without images is all
    padding.
    UserError if a row's image tokens are not those of its images.
    """
    unit, size = vision.merge**2, vision.window_units
    starts = [
        _image_starts(tokens, [p.grid for p in pictures], vision, f"row {r}")
        for r, (pictures, tokens) in enumerate(zip(pictures_per_row, tokens_per_row, strict=True))
    ]
    windows = [sum(_windows(p.grid, vision) for p in pictures) for pictures in pictures_per_row]
    R, P = len(windows), patch_places(max(windows, default=0), vision, least)
    patches = np.zeros((R, P, vision.patch_dim), np.float32)
    coords = np.zeros((R, P, 2), np.int32)
    image_ids = np.full((R, P), -1, np.int32)
    index = [np.full(len(tokens), -1, np.int32) for tokens in tokens_per_row]
    for r, pictures in enumerate(pictures_per_row):
        first = 0  # window of the row
        for number, picture in enumerate(pictures):
            units = first * size + _window_order(picture.grid, vision)
            places = (units[:, None] * unit + np.arange(unit)).reshape(-1)
            patches[r, places] = picture.patches
            coords[r, places] = _coords(picture.grid, vision)
            image_ids[r, places] = number
            index[r][starts[r][number] : starts[r][number] + len(units)] = units
            first += _windows(picture.grid, vision)
    return Pixels(patches, coords, image_ids), index


def patch_places(windows: int, vision: VisionConfig, least: int = 1) -> int:
    """Places for patches, P, of a row whose images have so many windows."""
    return bucket(windows, least) * vision.window_units * vision.merge**2


def largest_picture(images: ImageConfig, vision: VisionConfig) -> tuple[int, int]:
    """(tokens, places for patches) of a square image that is resized to the largest area."""
    side = math.isqrt(images.max_pixels)
    height, width = smart_resize(side, side, vision.unit, images.min_pixels, images.max_pixels)
    grid = (height // vision.patch, width // vision.patch)
    return picture_tokens(grid, vision), patch_places(_windows(grid, vision), vision)


def _looks_like_video(data: bytes) -> bool:
    """MP4 and QuickTime, AVI, Matroska and WebM, MPEG, Flash video, by their first bytes."""
    signatures = (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"FLV")
    return data[4:8] == b"ftyp" or data[8:12] == b"AVI " or data.startswith(signatures)


def _image_starts(
    tokens: Sequence[int], grids: Sequence[tuple[int, int]], vision: VisionConfig, name: str
) -> list[int]:
    """Where each image's run of tokens starts; UserError if they are not whole and in order."""
    there = np.flatnonzero(np.asarray(tokens, np.int64) == vision.image_token)
    sizes = [picture_tokens(grid, vision) for grid in grids]
    if len(there) != sum(sizes):
        raise UserError(
            f"image features and image tokens do not match: {name} has {len(there)} image tokens, "
            f"and its {len(grids)} image(s) give {sum(sizes)} features. Give each image one token "
            f"for every {vision.merge}x{vision.merge} of its patches, and cut no prompt short."
        )
    starts, seen = [], 0
    for number, size in enumerate(sizes):
        run = there[seen : seen + size]
        if run[-1] - run[0] + 1 != size:
            raise UserError(
                f"{name}: other tokens stand among the {size} image tokens of its image {number}, "
                f"at {run[0]} to {run[-1]}. An image's tokens must stand together."
            )
        starts.append(int(run[0]))
        seen += size
    return starts


def _windows(grid: tuple[int, int], vision: VisionConfig) -> int:
    """Windows that cover an image."""
    side = vision.window // vision.patch
    return -(-grid[0] // side) * -(-grid[1] // side)


def _window_order(grid: tuple[int, int], vision: VisionConfig) -> np.ndarray:
    """Place, in whole windows one after another, of every merge unit of an image, row by row."""
    side = vision.window // vision.unit
    rows, columns = np.indices((grid[0] // vision.merge, grid[1] // vision.merge))
    across = -(-(grid[1] // vision.merge) // side)
    window = rows // side * across + columns // side
    return (window * side**2 + rows % side * side + columns % side).reshape(-1)


def _coords(grid: tuple[int, int], vision: VisionConfig) -> np.ndarray:
    """(row, column) of every patch of an image, [h·w, 2], in the order of `Picture.patches`."""
    m, (h, w) = vision.merge, grid
    places = np.moveaxis(np.indices(grid), 0, -1).reshape(h // m, m, w // m, m, 2)
    return places.transpose(0, 2, 1, 3, 4).reshape(h * w, 2)
