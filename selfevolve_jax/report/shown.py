"""Pictures of sampled rows as the report shows them: in the page itself, tiny ones enlarged without a
blur and large ones as thumbnails."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from etils import epath

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError

PICTURES_SHOWN = 4  # of one row
LARGEST = 320  # pixels of the longer side
ENLARGED = (
    192  # pixels that a tiny picture's longer side is brought to, or as near as a whole factor
)
# What goes into the page as it is, if neither its sides nor its bytes are too many.
AS_IT_IS = frozenset(("png", "jpeg", "gif", "webp"))
MOST_BYTES = 1 << 18
# What Qwen2.5-VL's chat template writes for a picture, before or after its one token is repeated.
MARKER = re.compile(r"(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?")


@dataclass(frozen=True)
class Picture:
    """src: a data: URI, or None, and then `why` says why there is none. width, height: on the page, in
    CSS pixels; tiny: each pixel of the picture is several of those."""

    alt: str
    src: str | None = None
    width: int = 0
    height: int = 0
    tiny: bool = False
    why: str = ""


def pictured(folder: epath.Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a samples file with "pictures", the first PICTURES_SHOWN of its "images", and
    "more_pictures", how many there are beside those.

    The markers of pictures leave the prompt of a row that has some; of several pictures each leaves its
    number in its place. folder: the run directory, where relative paths start. What cannot be read is a
    picture without src.
    """
    names = row.get("images") or []
    pictures = [
        _picture(folder, name, f"picture {number} of {len(names)}, {name}")
        for number, name in enumerate(names[:PICTURES_SHOWN], 1)
    ]
    prompt, more = row["prompt"], len(names) - len(pictures)
    return {**row, "prompt": _told(prompt, len(names)), "pictures": pictures, "more_pictures": more}


def _told(prompt: str, pictures: int) -> str:
    """The prompt without the markers of its pictures."""
    if not pictures:
        return prompt
    if pictures == 1:
        return MARKER.sub("", prompt)
    numbers = count(1)
    return MARKER.sub(lambda _: f"[picture {next(numbers)}]", prompt)


def _picture(folder: epath.Path, name: str, alt: str) -> Picture:
    from PIL import Image

    # Only where there are pictures, as it brings jax. It shows what the policy was shown: upright, and
    # without the kinds that no policy is shown.
    from selfevolve_jax.images import load_image

    try:
        elsewhere = os.path.isabs(name) or run_dir.is_remote(name)
        data = (epath.Path(name) if elsewhere else folder / name).read_bytes()
    except FileNotFoundError:
        return Picture(alt, why="there is no such file now.")
    except Exception as error:  # a remote file system raises all kinds, a path that is none others
        return Picture(alt, why=f"it cannot be read ({getattr(error, 'strerror', None) or error}).")
    try:
        image = load_image(data)
    except UserError as error:
        return Picture(alt, why=str(error))
    with Image.open(io.BytesIO(data)) as opened:
        kind = (opened.format or "").lower()
    if kind not in AS_IT_IS or max(image.size) > LARGEST or len(data) > MOST_BYTES:
        kind = "jpeg" if kind in ("jpeg", "mpo") else "png"  # a photograph stays small
        image.thumbnail((LARGEST, LARGEST))
        file = io.BytesIO()
        image.save(file, kind)
        data = file.getvalue()
    factor = max(1, ENLARGED // max(image.size))
    width, height = (factor * side for side in image.size)
    src = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(alt, src, width, height, factor > 1)
