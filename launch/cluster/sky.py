"""`selfevolve launch sky`: a managed job of SkyPilot, on machines with GPUs or on a TPU slice."""

from __future__ import annotations

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
    quoted,
    run,
)
from launch.cluster.tpu import read_slice
from selfevolve_jax.errors import UserError

# JAX has no way of its own to find its peers under SkyPilot, which tells each machine of the others.
RENDEZVOUS = """\
export JAX_COORDINATOR_ADDRESS="${SKYPILOT_NODE_IPS%%[[:space:]]*}:8482"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""


@dataclass(frozen=True)
class Sky:
    """Runs a command as a SkyPilot managed job.

    name: of the job. topology: a TPU slice, as v6e:4x4; or gpus: those of each machine, as H100:8, and
    nodes: how many machines. infra: where, as gcp/us-east5 or k8s; anywhere by default. spot: on
    preemptible machines. cuda: the extra that the machines' driver takes. print: show the job's YAML,
    and touch nothing.
    """

    name: Annotated[str, tyro.conf.Positional]
    topology: str | None = None
    gpus: str | None = None
    nodes: int = 1
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
        if self.nodes < 1:
            raise UserError(f"nodes={self.nodes} must be at least 1.")
        if self.topology is not None and self.nodes > 1:
            raise UserError(
                f"nodes={self.nodes}: a TPU slice counts as one, whatever its hosts. Leave it out."
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
    resources: dict[str, object] = {
        "use_spot": options.spot,
        # told to stop, and a peer that is gone: no failures of its own
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [143, 75]},
    }
    if options.infra is not None:
        resources["infra"] = options.infra
    if options.topology is not None:
        chosen = read_slice(options.topology)
        resources["accelerators"] = f"tpu-{chosen.accelerator_type}"
        resources["accelerator_args"] = {"runtime_version": chosen.generation.runtime}
    else:
        resources["accelerators"] = options.gpus
    return fill(
        "sky.yaml",
        name=options.name,
        nodes=str(options.nodes),
        workdir=quoted(str(CHECKOUT)),
        resources=quoted(resources),
        extra="tpu" if options.topology else options.cuda,
        run=quoted(
            (RENDEZVOUS if options.nodes > 1 else "")
            + "exec .venv/bin/selfevolve "
            + shlex.join(job.words)
        ),
    )
