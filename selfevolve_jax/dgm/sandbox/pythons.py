"""The Python that a job can start."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from selfevolve_jax.dgm.sandbox.job import Box

SYSTEM = "/usr/bin/python3"
OLDEST = 11  # of 3.x


def python(box: Box) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """(start of argv, mounts) of a Job that runs Python: the system's where it is recent enough, else
    the controller's own without its packages, mounted where it is on the host (its files must then be
    readable by others; the folders that lead to it need not be, if the controller is root). In a
    container it is the image's."""
    if box.name != "bubblewrap":
        return ("python3",), {}
    if _recent(os.path.realpath(SYSTEM)):
        return (SYSTEM,), {}
    program = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    prefix = os.path.realpath(sys.base_prefix)
    return (program,), ({} if prefix.startswith("/usr/") or prefix == "/usr" else {prefix: prefix})


def _recent(program: str) -> bool:
    """By its name, such as /usr/bin/python3.11."""
    named = re.search(r"python3\.(\d+)$", program)
    return named is not None and int(named[1]) >= OLDEST and os.access(program, os.X_OK)
