"""edit: views, creates and replaces files."""

from __future__ import annotations

import os
from pathlib import Path

MAX_VIEW_CHARS = 40_000
MAX_ENTRIES = 300  # of a folder


def tool_info() -> dict:
    return {
        "name": "edit",
        "description": (
            "Views, creates and replaces files.\n"
            "view: a file with line numbers, or the names in a folder, two levels deep.\n"
            "create: a new file with file_text; fails if it is there already.\n"
            "replace: the whole content of a file becomes file_text."
        ),
        "parameters": {
            "type": "object",
            "properties": {
                "command": {"type": "string", "enum": ["view", "create", "replace"]},
                "path": {
                    "type": "string",
                    "description": "A file or folder, absolute or from the repository.",
                },
                "file_text": {
                    "type": "string",
                    "description": "The whole text of the file, for create and replace.",
                },
            },
            "required": ["command", "path"],
        },
    }


def tool_function(command: str, path: str, file_text: str | None = None) -> str:
    file = Path(path)
    if command == "view":
        return _folder(file) if file.is_dir() else _numbered(file)
    if command not in ("create", "replace"):
        return f"Error: there is no command {command!r}. There are: view, create, replace."
    if file_text is None:
        return f"Error: {command} needs file_text."
    if command == "create" and file.exists():
        return f"Error: {path} is there already; replace it instead."
    if command == "replace" and not file.is_file():
        return f"Error: {path} is no file; create it instead."
    data = file_text.encode("utf-8")  # before the file is opened: it may not be text
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return f"{path} written."


def _numbered(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    text = "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines, 1))
    if len(text) > MAX_VIEW_CHARS:
        return f"{text[:MAX_VIEW_CHARS]}\n[cut off: the file has {len(lines)} lines]"
    return text


def _folder(folder: Path) -> str:
    found: list[str] = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        deep = Path(where).relative_to(folder)
        found += [str(deep / name) + "/" for name in folders]
        found += [str(deep / name) for name in sorted(files) if not name.startswith(".")]
        if len(deep.parts) == 1:
            folders.clear()
        if len(found) > MAX_ENTRIES:
            return "\n".join([*found[:MAX_ENTRIES], "[cut off: there is more]"])
    return "\n".join(sorted(found)) or "[an empty folder]"
