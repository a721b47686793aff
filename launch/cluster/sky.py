"""`selfevolve launch sky`: a managed job of SkyPilot, on GPUs of one machine or on a TPU slice."""

from __future__ import annotations

import json
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from launch.cluster.job import (
    CHECKOUT,
    Job,
    check_name,
    fill,
    need_checkout,
    need_tool,
    needs_remote,
    run,
)
from launch.cluster.tpu import read_slice
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class Sky:
    """Runs a command as a SkyPilot managed job.

    name: of the job. topology: a TPU slice, as v6e:4x4; or gpus: those of one machine, as H100:8.
    infra: where, as gcp/us-east5 or k8s; anywhere by default. spot: on preemptible machines. cuda: the
    extra that the machine's driver takes. print: show the job's YAML, and touch nothing.
    """

    name: Annotated[str, tyro.conf.Positional]
    topology: str | None = None
    gpus: str | None = None
    infra: str | None = None
    spot: bool = False
    cuda: Literal["cuda12", "cuda13"] = "cuda12"
    print: bool = False

    def __post_init__(self):
        check_name(self.name)
        if (self.topology is None) == (self.gpus is None):
            raise UserError(
                f"topology={self.topology} and gpus={self.gpus}: name one of them, "
                "--topology v6e:4x4 or --gpus H100:8."
            )


def launch(options: Sky, job: Job) -> None:
    needs_remote(job, "SkyPilot")
    text = task(options, job)
    command = ["sky", "jobs", "launch", "--name", options.name, "--yes", "--detach-run"]
    if options.print:
        print(text, end="")
        print(f"# {shlex.join(command)} THE-ABOVE.yaml")
        return
    need_tool("sky", "uv tool install 'skypilot[gcp]', then `sky check`")
    need_checkout()
    with tempfile.TemporaryDirectory(prefix="selfevolve-") as folder:
        file = Path(folder) / f"{options.name}.yaml"
        file.write_text(text)
        run([*command, str(file)])
    print("state:  sky jobs queue")
    print(f"logs:   sky jobs logs --name {options.name}")
    print(f"delete: sky jobs cancel --name {options.name}", flush=True)


def task(options: Sky, job: Job) -> str:
    """The job as YAML. Strings are JSON's, which are YAML's too."""
    if options.topology is not None:
        chosen = read_slice(options.topology)
        accelerators = f"tpu-{chosen.accelerator_type}"
        arguments = {"runtime_version": chosen.generation.runtime}
    else:
        accelerators, arguments = str(options.gpus), None
    return fill(
        "sky.yaml",
        name=options.name,
        workdir=_quoted(str(CHECKOUT)),
        accelerators=_quoted(accelerators),
        accelerator_args=_quoted(arguments),
        infra=_quoted(options.infra),
        spot=_quoted(options.spot),
        extra="tpu" if options.topology else options.cuda,
        run=_quoted("exec .venv/bin/selfevolve " + shlex.join(job.words)),
    )


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
