"""preprocessor_config.json of a vision-language model to `ImageConfig`, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from models.config import VisionConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.images import ImageConfig

_BICUBIC = 3  # Pillow's number


def image_config(
    hf: Mapping[str, Any], vision: VisionConfig, where: str = "preprocessor_config.json"
) -> ImageConfig:
    """UserError for steps that our preprocessing does not have, for patches of another size than
    the vision tower's, and for missing or ill-typed values."""
    # Newer transformers hold it inside processor_config.json.
    hf = hf.get("image_processor") or hf
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if hf.get(key, True) is not True:
            raise UserError(f"{where}: {key} {hf[key]!r} is not supported (only true).")
    if hf.get("resample", _BICUBIC) != _BICUBIC:
        raise UserError(f"{where}: resample {hf['resample']} is not supported (only 3, bicubic).")
    if not math.isclose(hf.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise UserError(f"{where}: rescale_factor {hf['rescale_factor']} is not 1/255.")
    sizes = {
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal,
        "merge_size": vision.merge,
    }
    for key, size in sizes.items():
        if hf.get(key, size) != size:
            raise UserError(f"{where}: {key} {hf[key]} differs from config.json's {size}.")
    size = hf.get("size") or {}
    least = hf.get("min_pixels") or size.get("shortest_edge")
    most = hf.get("max_pixels") or size.get("longest_edge")
    mean, std = hf.get("image_mean"), hf.get("image_std")
    found = {"min_pixels": least, "max_pixels": most, "image_mean": mean, "image_std": std}
    absent = [key for key, value in found.items() if not value]
    if absent:
        raise UserError(f"{where} lacks {', '.join(absent)}. Fix: download the model again.")
    try:
        return ImageConfig(int(least), int(most), tuple(map(float, mean)), tuple(map(float, std)))  # pyright: ignore
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {json.dumps(found)} is not understood: {error}.") from error


def preprocessor_config(images: ImageConfig, vision: VisionConfig) -> dict[str, Any]:
    """The inverse, as the hub's checkpoints have it."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": images.min_pixels,
        "max_pixels": images.max_pixels,
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal,
        "merge_size": vision.merge,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
        "resample": _BICUBIC,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
