"""The command that a cluster is asked to run, and the programs on this machine that ask for it."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from launch import cli
from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SYSTEMS = {"srt": "srt", "mm-upt": "mm_upt", "ui-genie": "ui_genie", "dgm": "dgm"}


class ToolFailed(UserError):
    """A cluster's own program, or the job itself, failed; code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Job:
    """words: what follows `selfevolve`, `--resume` among them. folder: its run directory."""

    words: tuple[str, ...]
    folder: str

    @property
    def remote(self) -> bool:
        return run_dir.is_remote(self.folder)


def read_job(words: Sequence[str]) -> Job:
    """The command as typed after `--`. Parsed here as the cluster will parse it, so that a mistake
    costs no machine; `--resume` is added, with which the first start and every later one are the same.

    Raises UserError (or, of tyro's, SystemExit 2) for a mistake in it, a command that cannot be resumed
    and one without a run directory."""
    if not words:
        raise UserError(
            "launch needs the command to run, after --: "
            "selfevolve launch … -- srt RECIPE --run-dir gs://BUCKET/RUN."
        )
    command, rest = words[0], list(words[1:])
    if command == "agent-sft":
        from launch.agent_sft import AgentSFT

        options: Any = cli.parse(AgentSFT, rest, command)
        folder = options.out
    elif command in SYSTEMS:
        if not rest or rest[0].startswith("-"):
            raise UserError(f"{command} needs a recipe: {command} RECIPE --run-dir FOLDER.")
        kind = importlib.import_module(f"launch.{SYSTEMS[command]}").Run
        recipe = cli.load_recipe(rest[0], f"configs.{SYSTEMS[command]}")
        options = cli.parse(kind, rest[1:], f"{command} {rest[0]}", kind(recipe))
        if options.dry_run:
            raise UserError(f"{command} --dry-run needs no cluster. Fix: run it here.")
        folder = options.run_dir
    else:
        raise UserError(
            f"command {command!r} cannot be launched: it cannot be resumed after a preemption. "
            f"Choose one of {', '.join((*SYSTEMS, 'agent-sft'))}."
        )
    if folder is None:
        raise UserError(f"{command} needs --run-dir: a restarted job must find its run again.")
    return Job((command, *rest, *(() if options.resume else ("--resume",))), folder)


def needs_remote(job: Job, where: str) -> None:
    """UserError unless the run directory outlives the machines."""
    if job.words[0] == "dgm":
        raise UserError(
            f"dgm uses no accelerator and keeps its archive on a local disk; {where} has neither use "
            "nor place for it. Fix: run it on one machine, or by `selfevolve launch slurm`."
        )
    if not job.remote:
        raise UserError(
            f"the run directory {job.folder} is lost with the machines of {where}. "
            "Fix: name one in a bucket, as gs://BUCKET/RUN."
        )


def check_name(name: str) -> None:
    """What Kubernetes, gcloud and SkyPilot all take, with room for what they append."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(
            f"name={name!r}: write small letters, digits and hyphens, a letter first, at most 40."
        )


def need_tool(tool: str, whence: str) -> None:
    """UserError where `tool` is not on PATH; whence: how it is installed."""
    if shutil.which(tool) is None:
        raise UserError(f"{tool} is not installed, or not on PATH. Fix: {whence}.")


def need_checkout() -> None:
    """UserError where the code that is to be copied is no checkout, but an installed wheel."""
    if not (CHECKOUT / "uv.lock").is_file():
        raise UserError(
            f"{CHECKOUT} is no checkout of selfevolve_jax: it has no uv.lock, by which the cluster "
            "installs. Fix: launch from a checkout, with `uv run selfevolve launch …`."
        )


def run(command: Sequence[str], text: str | None = None) -> None:
    """Runs a program in the foreground, `text` on its stdin. ToolFailed if it fails."""
    try:
        code = subprocess.run(command, input=text, text=True).returncode
    except OSError as error:
        raise ToolFailed(f"{command[0]} cannot be run: {error.strerror}.") from error
    if code:
        raise ToolFailed(f"{shlex.join(command)} failed with code {code}; what it said is above.")


def quoted(value: object) -> str:
    """A value for a template of YAML, as JSON, which YAML can read."""
    return json.dumps(value, ensure_ascii=False)


def fill(template: str, **values: str) -> str:
    """A file of this folder with its $NAMES filled. ValueError for one too many, KeyError for a missing
    one: both are bugs."""
    text = Template((HERE / template).read_text())
    if extra := values.keys() - set(text.get_identifiers()):
        raise ValueError(f"{template} has no place for {', '.join(sorted(extra))}")
    return text.substitute(values)
