"""Compilers and interpreters of this machine, as a sandbox sees them: under /usr, or by a read-only
mount. Nothing is downloaded."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LANGUAGES = ("cpp", "go", "java", "javascript", "python", "rust")
INSIDE = "/usr/local/bin:/usr/bin:/bin"  # PATH in a sandbox
# What JUnit's launcher and Exercism's tests need; the console's standalone jar holds all but AssertJ.
JARS = ("junit-jupiter-api", "junit-jupiter-engine", "junit-platform-launcher")


@dataclass(frozen=True)
class Toolchain:
    """programs: name -> its path in a sandbox. version: one line, which a cached grade depends on."""

    language: str
    programs: Mapping[str, str]
    version: str
    mounts: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def find(language: str, java_jars: str | None = None) -> Toolchain | str:
    """The toolchain, or why there is none and what would help."""
    return {
        "cpp": _cpp,
        "go": _go,
        "java": lambda: _java(java_jars),
        "javascript": _javascript,
        "python": _python,
        "rust": _rust,
    }[language]()


def _python() -> Toolchain | str:
    return Toolchain("python", {}, sys.version)  # a sandbox's own: sandbox/pythons.py finds it


def _javascript() -> Toolchain | str:
    node = _inside("node")
    if not node:
        return "no node in /usr: apt-get install nodejs"
    return Toolchain("javascript", {"node": node}, _said(node, "--version"))


def _cpp() -> Toolchain | str:
    path = _inside("g++")
    if not path:
        return "no g++ in /usr: apt-get install g++"
    return Toolchain("cpp", {"g++": path}, _said(path, "--version"))


def _go() -> Toolchain | str:
    path = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    root = _said(path, "env", "GOROOT") if path else ""
    if not path or not os.path.exists(f"{root}/bin/go"):
        return "no go: apt-get install golang-go, or put go's bin folder on PATH"
    mounts = {} if _under_usr(root) else {"/opt/go": root}
    programs = {"go": f"{'/opt/go' if mounts else root}/bin/go"}
    return Toolchain("go", programs, _said(path, "version"), mounts)


def _rust() -> Toolchain | str:
    rustc = shutil.which("rustc") or shutil.which("rustc", path=os.path.expanduser("~/.cargo/bin"))
    root = _said(rustc, "--print", "sysroot") if rustc else ""
    if not rustc or not os.path.exists(f"{root}/bin/cargo"):
        return "no cargo and rustc: install them by rustup, or apt-get install cargo"
    if not _inside("cc"):
        return "no cc in /usr, by which rustc links: apt-get install gcc"
    mounts = {} if _under_usr(root) else {"/opt/rust": root}
    folder = f"{'/opt/rust' if mounts else root}/bin"
    programs = {"cargo": f"{folder}/cargo", "rustc": f"{folder}/rustc"}
    return Toolchain("rust", programs, _said(rustc, "--version"), mounts)


def _java(jars: str | None) -> Toolchain | str:
    javac, java = _inside("javac"), _inside("java")
    if not javac or not java:
        return "no JDK in /usr: apt-get install default-jdk-headless"
    needed = "a folder with JUnit 5 (junit-platform-console-standalone), AssertJ and Byte Buddy"
    if jars is None:
        return f"no jars to compile its tests against: pass java_jars, {needed}"
    if not os.path.isdir(jars) or os.stat(jars).st_mode & 0o005 != 0o005:
        return f"java_jars={jars} is no folder that others can read: it should be {needed}"
    names = sorted(p.name for p in Path(jars).glob("*.jar"))
    missing = [j for j in JARS if not any(n.startswith(j) for n in names)]
    if missing and not any("console-standalone" in n for n in names):
        return f"java_jars={jars} lacks {', '.join(missing)}: it should be {needed}"
    version = f"{_said(javac, '-version')} {' '.join(names)}"
    return Toolchain("java", {"javac": javac, "java": java}, version, {"/opt/jars": jars})


def _inside(program: str) -> str | None:
    """Its path in a sandbox, where only what resolves into /usr is there."""
    path = shutil.which(program, path=INSIDE)
    return path if path and _under_usr(os.path.realpath(path)) else None


def _under_usr(path: str) -> bool:
    return os.path.realpath(path).startswith("/usr/")


def _said(*argv: str) -> str:
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.strip().split("\n")[0]
