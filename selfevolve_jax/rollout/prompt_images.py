"""What prompts show: images encoded once a prompt, whatever the number of samples."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from models import decoder, vision
from models.config import ModelConfig
from models.vision import Pixels
from selfevolve_jax import sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig, layout, load_image, preprocess, prompt_positions
from selfevolve_jax.tasks.base import Row

FEATURE_AXES = ("batch", None, None)
# Patches that a device encodes at a time.
PATCHES_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class PromptImages:
    """The images of R prompts, some of which may have none.

    pixels: numpy, R rows padded to what divides over the mesh. features_RxUxD: on devices, likewise.
    index: for each prompt, int32 [L], the place on U of each image token, −1 for text.
    positions: for each prompt, int32 [L, 3]. shifts: what the rotary position of a token after the
    prompt differs by from its index.
    """

    pixels: Pixels
    features_RxUxD: jax.Array
    index: Sequence[np.ndarray]
    positions: Sequence[np.ndarray]
    shifts: Sequence[int]

    def rows(self, start: int, n: int, width: int, mesh: Mesh) -> tuple[jax.Array, ...]:
        """For the prefill of prompts [start, start + n): (features, row of the features, index
        [n, width], rotary positions [n, width, 3]); the last token of a prompt is left out."""
        row_n = np.zeros(n, np.int32)
        index = np.full((n, width), -1, np.int32)
        positions = np.zeros((n, width, 3), np.int32)
        for i, prompt in enumerate(range(start, min(start + n, len(self.index)))):
            length = len(self.index[prompt]) - 1
            row_n[i] = prompt
            index[i, :length] = self.index[prompt][:-1]
            positions[i, :length] = self.positions[prompt][:-1]
        return (self.features_RxUxD, *sharding.put_batch((row_n, index, positions), mesh))


def encode_images(
    params: decoder.Params,
    rows: Sequence[Row],
    images: ImageConfig | None,
    cfg: ModelConfig,
    mesh: Mesh,
) -> PromptImages | None:
    """Reads and encodes the rows' images; None if no row has any. UserError, naming the row, for an
    image that cannot be read or a prompt that does not match its images."""
    if not any(row.images for row in rows):
        return None
    if cfg.vision is None or images is None:
        raise UserError(
            f"row {next(r.id for r in rows if r.images)} has images, and this policy reads text "
            "only. Use a vision-language checkpoint, such as Qwen2.5-VL."
        )
    pictures, positions, shifts = [], [], []
    for row in rows:
        try:
            seen = [preprocess(load_image(image), images, cfg.vision) for image in row.images]
            place, shift = prompt_positions(row.prompt_tokens, [p.grid for p in seen], cfg.vision)
        except UserError as error:
            raise UserError(f"row {row.id}: {error}") from error
        if row.prompt_tokens[-1] == cfg.vision.image_token:
            raise UserError(f"row {row.id}: its prompt ends in an image. Put text after it.")
        pictures.append(seen)
        positions.append(place)
        shifts.append(shift)
    ways = sharding.batch_ways(mesh)
    empty = -len(rows) % ways
    tokens = [row.prompt_tokens for row in rows]
    pixels, index = layout([*pictures, *[[]] * empty], [*tokens, *[()] * empty], cfg.vision)
    features = _encode_rows(params.vision, pixels, cfg, mesh)
    return PromptImages(pixels, features, index[: len(rows)], positions, shifts)


def _encode_rows(params: Any, pixels: Pixels, cfg: ModelConfig, mesh: Mesh) -> jax.Array:
    """Features [R, U, D], a fixed number of rows at a time."""
    R, P = pixels.image_ids_RxP.shape
    ways, constrain = sharding.batch_ways(mesh), sharding.constrainer(mesh)
    size = min(R, max(PATCHES_AT_ONCE // P, 1) * ways)
    parts = []
    for start in range(0, R, size):
        piece = jax.tree.map(
            lambda x, fill, i=start: _padded(x[i : i + size], size, fill), pixels, Pixels(0, 0, -1)
        )
        parts.append(_encode(params, sharding.put_batch(piece, mesh), cfg, constrain))
    return parts[0] if len(parts) == 1 else _joined(parts, R, constrain)


def _padded(x: np.ndarray, rows: int, fill: int) -> np.ndarray:
    return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=fill)


@functools.partial(jax.jit, static_argnames=("cfg", "constrain"))
def _encode(params, pixels: Pixels, cfg: ModelConfig, constrain) -> jax.Array:
    return constrain(vision.encode(params, pixels, cfg, constrain), FEATURE_AXES)


@functools.partial(jax.jit, static_argnames=("rows", "constrain"))
def _joined(parts: list[jax.Array], rows: int, constrain) -> jax.Array:
    return constrain(jnp.concatenate(parts)[:rows], FEATURE_AXES)
