"""`selfevolve launch slurm`: one batch job, a task for each GPU, as jax.distributed expects there."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Annotated

import tyro

from launch.cluster.job import CHECKOUT, HERE, Job, check_name, need_tool, run
from selfevolve_jax.errors import UserError

TIME = r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}"


@dataclass(frozen=True)
class Slurm:
    """Submits a command as a SLURM job that requeues itself.

    name: of the job, and of its log NAME-JOBID.log in this folder. time: the limit of one life of the
    job, in sbatch's way; a job that reaches it saves and queues again. gpus_per_node: 0 for a job on
    CPUs. grace_seconds: how long before the limit it is told to save. Other options of sbatch are its
    environment's: SBATCH_QOS, SBATCH_CONSTRAINT, SBATCH_RESERVATION and so on. print: show the
    command, and touch nothing.
    """

    name: Annotated[str, tyro.conf.Positional]
    time: str
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    partition: str | None = None
    account: str | None = None
    grace_seconds: int = 300
    print: bool = False

    def __post_init__(self):
        check_name(self.name)
        if not re.fullmatch(TIME, self.time):
            raise UserError(f"time={self.time!r}: write MINUTES, HH:MM:SS or DAYS-HH:MM:SS.")
        for field, least in (("nodes", 1), ("gpus_per_node", 0), ("grace_seconds", 1)):
            if getattr(self, field) < least:
                raise UserError(f"{field}={getattr(self, field)} must be at least {least}.")


def launch(options: Slurm, job: Job) -> None:
    command = submission(options, job)
    if options.print:
        print(shlex.join(command))
        return
    need_tool("sbatch", "launch from a login node of the cluster")
    program = CHECKOUT / ".venv" / "bin" / "selfevolve"
    if not program.is_file():
        raise UserError(
            f"{program} does not exist, and is what the nodes would run. "
            "Fix: in the checkout, `uv sync --extra cuda12` (or cuda13; nothing for CPUs)."
        )
    run(command)
    print("state:  squeue --me")
    print(f"logs:   tail -F {options.name}-JOBID.log")
    print("delete: scancel JOBID", flush=True)


def submission(options: Slurm, job: Job) -> list[str]:
    """The whole sbatch command. The checkout is named, since sbatch runs a copy of the script."""
    chosen = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": options.gpus_per_node or 1,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "output": f"{options.name}-%j.log",
        "open-mode": "append",
        "signal": f"B:USR1@{options.grace_seconds}",
    }
    flags = [f"--{name}={value}" for name, value in chosen.items() if value is not None]
    script = str(HERE / "slurm.sh")
    return ["sbatch", *flags, "--requeue", script, str(CHECKOUT), *job.words]
