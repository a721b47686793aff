"""`selfevolve launch WHERE … -- COMMAND …`."""

from __future__ import annotations

from collections.abc import Sequence

from launch import cli
from launch.cluster import gke, sky, slurm, tpu_vm
from launch.cluster.job import read_job
from selfevolve_jax.errors import UserError

WHERE = {"tpu-vm": tpu_vm, "gke": gke, "slurm": slurm, "sky": sky}
KINDS = {"tpu-vm": tpu_vm.TPUVM, "gke": gke.GKE, "slurm": slurm.Slurm, "sky": sky.Sky}
USAGE = """usage: selfevolve launch WHERE OPTIONS -- COMMAND

  WHERE    tpu-vm, gke, slurm or sky; each explains itself: selfevolve launch WHERE --help
  COMMAND  what follows `selfevolve`: srt RECIPE --run-dir gs://BUCKET/RUN …

With --print it shows what it would do and touches nothing. docs/launch.md says which to choose.
"""


def launch(arguments: Sequence[str]) -> None:
    """arguments: what follows `selfevolve launch`."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, words = list(arguments[:cut]), list(arguments[cut + 1 :])
    if own and own[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if not own or own[0] not in WHERE:
        shown = f"launch {own[0]!r} is unknown" if own else "launch needs to know where"
        raise UserError(f"{shown}; choose one of {', '.join(WHERE)}.")
    options = cli.parse(KINDS[own[0]], own[1:], f"launch {own[0]}")
    if own[0] == "tpu-vm":
        job = read_job(words) if words or options.action in ("run", "start") else None
        tpu_vm.launch(options, job)
    else:
        WHERE[own[0]].launch(options, read_job(words))
