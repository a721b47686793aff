"""A Qwen2.5-VL of a few thousand parameters that reads the arithmetic task's characters, and rows of
that task with pictures before their prompts."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from models.config import ModelConfig, VisionConfig
from selfevolve_jax.images import ImageConfig, load_image, picture_tokens, preprocess
from selfevolve_jax.tasks import arithmetic

VISION = VisionConfig(
    d_model=16,
    n_layers=2,
    n_heads=2,
    d_ff=16,
    image_token=0,  # the padding character, which no prompt holds
    full_attention=(1,),
    patch=4,
    window=16,
)
MODEL = ModelConfig(
    vocab_size=16,
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    mrope_sections=(2, 1, 1),
    vision=VISION,
)
IMAGES = ImageConfig(min_pixels=64, max_pixels=1024)


def picture(seed: int, height: int, width: int) -> bytes:
    """A PNG of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def with_pictures(row, *pictures: bytes):
    """The row with pictures before its prompt."""
    grids = [preprocess(load_image(p), IMAGES, VISION).grid for p in pictures]
    places = sum(picture_tokens(grid, VISION) for grid in grids)
    return replace(row, images=pictures, prompt_tokens=(0,) * places + row.prompt_tokens)


def task(train_rows: int = 16, held_out_rows: int = 4):
    """The arithmetic task, its rows with no, one or two pictures of several sizes in turn."""
    config = arithmetic.ArithmeticConfig((3,), 0, train_rows, held_out_rows)
    plain = arithmetic.load_task(config, 0)
    shapes = ((), ((16, 24),), ((30, 9), (16, 16)))

    def shown(rows):
        return [
            with_pictures(
                row, *(picture(10 * i + j, *size) for j, size in enumerate(shapes[i % len(shapes)]))
            )
            for i, row in enumerate(rows)
        ]

    return replace(plain, train=shown(plain.train), held_out=shown(plain.held_out), images=IMAGES)
