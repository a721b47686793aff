"""The tools. Each module of this folder is one: tool_info() describes it to the model (name,
description, parameters as a JSON schema), and tool_function(**arguments) runs it and returns text."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable


def load_tools() -> dict[str, tuple[dict, Callable[..., str]]]:
    """name -> (info, function), in the order of the modules' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {m.tool_info()["name"]: (m.tool_info(), m.tool_function) for m in modules}
