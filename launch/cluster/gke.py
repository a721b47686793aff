"""`selfevolve launch gke`: one JobSet on a GKE cluster, a pod for each host of a TPU slice.

jobset.yaml says what happens at a preemption and what ends the job.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from launch.cluster.job import Job, check_name, fill, need_tool, needs_remote, quoted, run
from launch.cluster.tpu import read_slice
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class GKE:
    """Runs a command on a TPU slice of the GKE cluster that kubectl points to.

    name: of the JobSet. topology: the slice, as v5e:8x8. image: made from launch/cluster/Dockerfile
    with EXTRA=tpu. spot: on preemptible nodes. service_account: the Kubernetes one that may write to
    the bucket. max_restarts: how often the job is restarted, for whatever reason but a command line
    that is refused. print: show the manifest, and touch nothing.
    """

    name: Annotated[str, tyro.conf.Positional]
    topology: str
    image: str
    spot: bool = False
    service_account: str = "default"
    max_restarts: int = 50
    print: bool = False

    def __post_init__(self):
        check_name(self.name)
        if self.max_restarts < 0:
            raise UserError(f"max_restarts={self.max_restarts} must be at least 0.")


def launch(options: GKE, job: Job) -> None:
    needs_remote(job, "GKE")
    text = manifest(options, job)
    if options.print:
        print(text, end="")
        return
    need_tool("kubectl", "gcloud components install kubectl")
    run(["kubectl", "apply", "-f", "-"], text)
    chosen = f"-l jobset.sigs.k8s.io/jobset-name={options.name}"
    print(f"state:  kubectl get jobset,pods {chosen}")
    print(f"logs:   kubectl logs -f --prefix --all-containers --max-log-requests 1000 {chosen}")
    print(f"delete: kubectl delete jobset {options.name}", flush=True)


def manifest(options: GKE, job: Job) -> str:
    """The JobSet as YAML. Strings are JSON's, which are YAML's too."""
    chosen = read_slice(options.topology)
    nodes = {
        "cloud.google.com/gke-tpu-accelerator": chosen.generation.gke,
        "cloud.google.com/gke-tpu-topology": chosen.topology,
        **({"cloud.google.com/gke-spot": "true"} if options.spot else {}),
    }
    return fill(
        "jobset.yaml",
        name=options.name,
        image=quoted(options.image),
        service_account=quoted(options.service_account),
        nodes=json.dumps(nodes),
        hosts=str(chosen.hosts),
        chips=str(chosen.chips_per_host),
        final="[1, 2]" if chosen.hosts == 1 else "[2]",
        max_restarts=str(options.max_restarts),
        command=_escaped(["selfevolve", *job.words]),
    )


def _escaped(words: Sequence[str]) -> str:
    """Kubernetes would replace $(NAME), and takes $$ for one dollar."""
    return quoted([word.replace("$(", "$$(") for word in words])
