"""Where this project keeps what can be made again: bases, programs, peers, data sets. No jax."""

from __future__ import annotations

import os
from pathlib import Path

from selfevolve_jax.errors import UserError
from selfevolve_jax.remote import is_remote


def cache_folder() -> Path:
    """$SELFEVOLVE_CACHE, or selfevolve in the user's cache folder. UserError where it is in a bucket,
    which has no rename to put a base there whole."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("SELFEVOLVE_CACHE") or os.path.join(home, "selfevolve")
    if is_remote(folder):
        raise UserError(f"SELFEVOLVE_CACHE={folder}: the cache is a local folder. Set it to one.")
    return Path(folder)
