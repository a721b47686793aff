"""`selfevolve launch`: what --print shows for each cluster, and every mistake as one message."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.cluster.job import CHECKOUT
from launch.cluster.tpu import read_slice
from selfevolve_jax.errors import UserError
from tests.launch.clusters import Cluster

# quotes of both kinds, blanks, a command, a backslash
FOLDER = """gs://bucket/it's "$(mine)" \\ Größe"""
JOB = ["--", "srt", "quickstart", "--run-dir", FOLDER, "--seed", "3"]
WORDS = [*JOB[1:], "--resume"]
TPU_VM = ["tpu-vm", "run", "mine", "--zone", "z", "--topology", "v5e:4x4"]
GKE = ["gke", "mine", "--topology", "v5e:8x8", "--image", "here/it:1"]
SLURM = ["slurm", "mine", "--time", "24:00:00"]
SKY = ["sky", "mine", "--topology", "v6e:4x4"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A machine with nothing on PATH but git, and what a test adds."""
    monkeypatch.chdir(tmp_path)
    return Cluster(tmp_path / "bin", monkeypatch)


def shown(capfd, *words) -> str:
    main(["launch", *words, "--print", *JOB])
    return capfd.readouterr().out


def refused(capfd, *words) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["launch", *words])
    assert caught.value.code == 2
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err and out == ""
    assert err.count("╭─ selfevolve") + err.count("For full helptext") == 1, err
    return " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in err.splitlines()).split())


# From Google's tables: v5litepod-64 is 8x8, 16 VMs of 4 chips; v5p-128 is 64 chips, 128 cores, 4x4x4.
@pytest.mark.parametrize(
    ("text", "chips", "hosts", "a_host", "accelerator", "gke"),
    [
        ("v5e:1x1", 1, 1, 1, "v5litepod-1", "tpu-v5-lite-podslice"),
        ("v5e:2x4", 8, 1, 8, "v5litepod-8", "tpu-v5-lite-podslice"),
        ("v5e:4x4", 16, 4, 4, "v5litepod-16", "tpu-v5-lite-podslice"),
        ("v5e:8x8", 64, 16, 4, "v5litepod-64", "tpu-v5-lite-podslice"),
        ("v5e:16x16", 256, 64, 4, "v5litepod-256", "tpu-v5-lite-podslice"),
        ("v5p:2x2x1", 4, 1, 4, "v5p-8", "tpu-v5p-slice"),
        ("v5p:2x4x4", 32, 8, 4, "v5p-64", "tpu-v5p-slice"),
        ("v5p:4x4x4", 64, 16, 4, "v5p-128", "tpu-v5p-slice"),
        ("v5p:4x8x8", 256, 64, 4, "v5p-512", "tpu-v5p-slice"),
        ("v6e:2x2", 4, 1, 4, "v6e-4", "tpu-v6e-slice"),
        ("v6e:16x16", 256, 64, 4, "v6e-256", "tpu-v6e-slice"),
        ("v4:2x2x2", 8, 2, 4, "v4-16", "tpu-v4-podslice"),
    ],
)
def test_what_a_slice_is_made_of(text, chips, hosts, a_host, accelerator, gke):
    found = read_slice(text)
    assert (found.chips, found.hosts, found.chips_per_host) == (chips, hosts, a_host)
    assert (found.accelerator_type, found.generation.gke) == (accelerator, gke)
    assert f"{found.name}:{found.topology}" == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8x8", "GENERATION:SHAPE"),
        ("v5e", "GENERATION:SHAPE"),
        ("v5litepod:8x8", "Generations: v4, v5e, v5p, v6e"),
        ("v5e:3x3", "no such slice. Shapes: 1x1, 2x2, 2x4"),
        ("v5e:8x4", "no such slice"),
        ("v5e:4x4x4", "no such slice"),
        ("v5e:32x32", "no such slice"),
        ("v5p:8x8", "no such slice"),
        ("v5p:4x4x6", "multiples of 4"),
        ("v5p:8x4x4", "rising order"),
        ("v5p:16x16x32", "up to 6144 chips"),
        ("v5p:0x0x0", "no such slice"),
        ("v5p:4x4x-4", "no such slice"),
    ],
)
def test_slices_that_there_are_not(text, words):
    with pytest.raises(UserError) as caught:
        read_slice(text)
    assert words in str(caught.value) and repr(text) in str(caught.value)


def test_a_shape_that_gcloud_has_no_word_for_is_gke_s():
    for text, words in (("v5p:4x4x16", "come as 4x8x8"), ("tpu7x:2x2x1", "only GKE has tpu7x")):
        with pytest.raises(UserError, match=words):
            _ = read_slice(text).accelerator_type
    assert read_slice("v5p:4x4x16").hosts == 64


def test_tpu_vm_shows_every_command(cluster, capfd):
    lines = shown(capfd, *TPU_VM, "--spot", "--project", "p q").splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert all(c[:3] == ["gcloud", "compute", "tpus"] for c in commands)
    assert all("--zone=z" in c and "--project=p q" in c for c in commands)
    kinds = [" ".join(c[3:5]) for c in commands]
    watch = ["queued-resources describe", "tpu-vm describe"]
    begin = ["tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    assert kinds == [
        *("queued-resources create", *watch, *begin, *watch, "tpu-vm ssh"),
        *("queued-resources delete", "tpu-vm ssh", "queued-resources delete"),
    ]
    assert {"--spot", "--node-id=mine", "--accelerator-type=v5litepod-16"} < set(commands[0])
    assert "--runtime-version=v2-alpha-tpuv5-lite" in commands[0]
    starts = [a for c in commands for a in c if "worker.sh start" in a]
    assert len(starts) == 1
    remote = shlex.split(
        starts[0].removeprefix("--command=")
    )  # as the worker's shell takes it apart
    assert remote == ["selfevolve/launch/cluster/worker.sh", "start", *WORDS]
    everywhere = [c for c in commands if c[4] in ("ssh", "scp")]
    assert all("--worker=all" in c for c in everywhere)
    assert "# 16 chips on 4 worker(s)" in lines
    kept = shown(capfd, *TPU_VM, "--keep")
    assert "--spot" not in kept and kept.count("queued-resources delete") == 1


@pytest.mark.parametrize(
    ("action", "sign"),
    [
        ("create", "queued-resources create mine"),
        ("logs", "tail -n 100 -F"),
        ("stop", "worker.sh stop"),
        ("delete", "--force --quiet"),
    ],
)
def test_a_part_of_tpu_vm_is_one_command(cluster, capfd, action, sign):
    words = ["launch", "tpu-vm", action, *TPU_VM[2:]]
    main([*words, "--print"])
    said = capfd.readouterr().out
    assert said.count("\n") == 1 and sign in said
    cluster.program("gcloud")
    main(words)
    assert [["gcloud", *given] for _, given, _, _ in cluster.calls()] == [shlex.split(said)]


def test_the_jobset_is_filled_and_applied(cluster, capfd):
    text = shown(capfd, *GKE, "--max-restarts", "7")
    filled = yaml.safe_load(text)
    assert (filled["apiVersion"], filled["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert filled["metadata"] == {"name": "mine"}
    assert filled["spec"]["failurePolicy"]["maxRestarts"] == 7
    (slice_,) = filled["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    assert slice_["replicas"] == 1
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (16, 16, 0)
    # a command line that is refused (2) ends the JobSet; nothing else does at once
    assert filled["spec"]["failurePolicy"]["rules"] == [
        {
            "name": "refused",  # the JobSet schema asks for one
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    (rule,) = job["podFailurePolicy"]["rules"]
    (pod,) = job["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"] == {
        "containerName": pod["name"],
        "operator": "In",
        "values": [2],
    }
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "8x8",
    }
    assert pod["resources"] == {r: {"google.com/tpu": 4} for r in ("requests", "limits")}
    # Kubernetes makes $$( into $( again
    assert [w.replace("$$(", "$(") for w in pod["command"]] == ["selfevolve", *WORDS]
    assert "$(" not in "".join(pod["command"]).replace("$$(", "")
    spot = yaml.safe_load(shown(capfd, *GKE, "--spot"))["spec"]["replicatedJobs"][0]
    chosen = spot["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert chosen["cloud.google.com/gke-spot"] == "true"

    cluster.program("kubectl")
    main(["launch", *GKE, "--max-restarts", "7", *JOB])
    assert cluster.calls() == [["kubectl", ["apply", "-f", "-"], text, {}]]
    assert "kubectl delete jobset mine" in capfd.readouterr().out


def test_one_host_of_eight_chips_is_one_pod(cluster, capfd):
    words = ["gke", "mine", "--topology", "v6e:2x4", "--image", "i"]
    job = yaml.safe_load(shown(capfd, *words))["spec"]["replicatedJobs"][0]["template"]["spec"]
    (pod,) = job["template"]["spec"]["containers"]
    assert job["parallelism"] == 1 and pod["resources"]["limits"] == {"google.com/tpu": 8}
    # no peer can be behind its failure
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]


def test_slurm_submits_a_task_for_each_gpu(cluster, capfd, monkeypatch, tmp_path):
    words = [*SLURM, "--nodes", "2", "--gpus-per-node", "8", "--partition", "big one"]
    said = shown(capfd, *words)
    command = shlex.split(said)
    script = str(CHECKOUT / "launch" / "cluster" / "slurm.sh")
    assert command[0] == "sbatch"
    assert command[command.index(script) :] == [script, str(CHECKOUT), *WORDS]
    flags = set(command[1 : command.index(script)])
    assert flags == {
        *("--job-name=mine", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"),
        *("--time=24:00:00", "--partition=big one", "--output=mine-%j.log", "--open-mode=append"),
        *("--signal=B:USR1@300", "--requeue"),
    }
    one = shlex.split(shown(capfd, *SLURM))
    assert "--ntasks-per-node=1" in one and not [f for f in one if "gpus" in f or "cpus" in f]

    program = tmp_path / ".venv" / "bin" / "selfevolve"
    monkeypatch.setattr("launch.cluster.slurm.CHECKOUT", tmp_path)
    cluster.program("sbatch")
    assert "uv sync --extra cuda12" in refused(capfd, *words, *JOB) and not cluster.calls()
    program.parent.mkdir(parents=True)
    program.touch()
    main(["launch", *words, *JOB])
    ((_, given, _, _),) = cluster.calls()
    assert ["sbatch", *given] == [str(tmp_path) if w == str(CHECKOUT) else w for w in command]


@pytest.mark.parametrize(
    ("words", "accelerators", "arguments", "extra"),
    [
        (SKY[2:], "tpu-v6e-16", {"runtime_version": "v2-alpha-tpuv6e"}, "tpu"),
        (["--topology", "v5p:4x4x4"], "tpu-v5p-128", {"runtime_version": "v2-alpha-tpuv5"}, "tpu"),
        (["--gpus", "H100:8", "--cuda", "cuda13"], "H100:8", None, "cuda13"),
    ],
)
def test_skypilot_is_given_a_managed_job(cluster, capfd, words, accelerators, arguments, extra):
    text = shown(capfd, "sky", "mine", *words, "--spot", "--infra", "gcp/us-east5")
    task = yaml.safe_load(text)
    assert task["name"] == "mine" and task["workdir"] == str(CHECKOUT) and task["num_nodes"] == 1
    assert task["resources"] == {
        "accelerators": accelerators,
        **({"accelerator_args": arguments} if arguments else {}),  # its schema takes no null
        "infra": "gcp/us-east5",
        "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [143, 75]},
    }
    assert f"--extra {extra}" in task["setup"] and '"$HOME/.local/bin:$PATH"' in task["setup"]
    assert shlex.split(task["run"]) == ["exec", ".venv/bin/selfevolve", *WORDS]

    cluster.program("sky")
    main(["launch", "sky", "mine", *words, "--spot", "--infra", "gcp/us-east5", *JOB])
    ((_, given, _, files),) = cluster.calls()
    command = shlex.split(text.splitlines()[-1].removeprefix("# "))
    assert ["sky", *given[:-1]] == command[:-1]
    assert yaml.safe_load(files[given[-1]]) == task and not Path(given[-1]).exists()


def test_machines_of_skypilot_are_told_of_each_other(tmp_path, capfd):
    """By the variables that JAX's launchers use, from those that SkyPilot gives each machine."""
    task = yaml.safe_load(shown(capfd, "sky", "mine", "--gpus", "H100:8", "--nodes", "2"))
    assert task["num_nodes"] == 2
    program = tmp_path / ".venv/bin/selfevolve"
    program.parent.mkdir(parents=True)
    names = "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"
    program.write_text(f'#!/bin/sh\necho {names}; printf "%s\\n" "$@"\n')
    program.chmod(0o755)
    env = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    out = subprocess.run(
        ["bash", "-c", task["run"]],
        env={**env, "SKYPILOT_NODE_RANK": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.splitlines() == ["10.0.0.1:8482 2 1", *WORDS]


@pytest.mark.parametrize("where", [TPU_VM, GKE, SLURM, SKY], ids=lambda w: w[0])
def test_print_touches_nothing_and_a_missing_tool_is_named(cluster, capfd, tmp_path, where):
    """With nothing on PATH; then the tools that would be missed, were it not for --print."""
    before = sorted(tmp_path.rglob("*"))
    assert shown(capfd, *where)
    assert sorted(tmp_path.rglob("*")) == before
    tool = {"tpu-vm": "gcloud", "gke": "kubectl", "slurm": "sbatch", "sky": "sky"}[where[0]]
    assert f"{tool} is not installed, or not on PATH. Fix:" in refused(capfd, *where, *JOB)
    for name in ("gcloud", "kubectl", "sbatch", "sky"):
        cluster.program(name)
    shown(capfd, *where)
    assert not cluster.calls()


def test_a_tool_that_fails_is_told_with_its_command(cluster, capfd):
    cluster.program("kubectl", "print('no such cluster', file=sys.stderr); sys.exit(3)")
    with pytest.raises(SystemExit) as caught:
        main(["launch", *GKE, *JOB])
    assert caught.value.code == 1
    err = capfd.readouterr().err
    assert "no such cluster" in err and "kubectl apply -f - failed with code 3" in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "launch needs to know where; choose one of tpu-vm, gke, slurm, sky"),
        ("mars", "launch 'mars' is unknown"),
        ("-- srt quickstart", "launch needs to know where"),
        ("gke mine --topology v5e:8x8 --image i", "launch needs the command to run, after --"),
        ("gke mine --image i -- srt quickstart", "--topology"),
        ("gke mine --topology v5e:8x8 --image i --color -- srt quickstart", "--color"),
        ("gke Mine! --topology v5e:8x8 --image i -- srt quickstart", "name='Mine!'"),
        ("gke mine --topology v5e:9x9 --image i JOB", "topology='v5e:9x9'"),
        ("gke mine --topology v5e:8x8 --image i --max-restarts -1 JOB", "max_restarts=-1"),
        ("gke mine --topology v5e:8x8 --image i -- srt quickstart", "srt needs --run-dir"),
        ("gke mine --topology v5e:8x8 --image i -- srt quickstart --run-dir r", "gs://BUCKET/RUN"),
        ("gke mine --topology v5e:8x8 --image i -- srt", "srt needs a recipe"),
        (
            "gke mine --topology v5e:8x8 --image i -- srt nope --run-dir gs://b/r",
            "'nope' is unknown",
        ),
        (
            "gke mine --topology v5e:8x8 --image i -- selfevolve srt",
            "'selfevolve' cannot be launched",
        ),
        ("gke mine --topology v5e:8x8 --image i -- evaluate x", "'evaluate' cannot be launched"),
        ("gke mine --topology v5e:8x8 --image i JOB --trainer.stepss 3", "--trainer.stepss"),
        ("gke mine --topology v5e:8x8 --image i JOB --trainer.steps -3", "trainer.steps=-3"),
        ("gke mine --topology v5e:8x8 --image i JOB --dry-run", "needs no cluster"),
        ("gke mine --topology v5e:8x8 --image i -- dgm quickstart --run-dir r", "no accelerator"),
        ("tpu-vm run mine --topology v5e:8x8 JOB", "--zone"),
        ("tpu-vm fly mine --zone z --topology v5e:8x8 JOB", "fly"),
        ("tpu-vm run mine --zone z --topology tpu7x:2x2x1 JOB", "only GKE has tpu7x"),
        ("tpu-vm run mine --zone z --topology v5e:8x8", "launch needs the command to run"),
        ("tpu-vm logs mine --zone z --topology v5e:8x8 JOB", "takes no command"),
        ("tpu-vm run mine --zone z --topology v5e:8x8 --poll-seconds 0 JOB", "poll_seconds=0"),
        ("slurm mine JOB", "--time"),
        ("slurm mine --time soon JOB", "time='soon'"),
        ("slurm mine --time 60 --nodes 0 JOB", "nodes=0 must be at least 1"),
        ("sky mine JOB", "name one of them"),
        ("sky mine --gpus H100:8 --topology v5e:8x8 JOB", "name one of them"),
        ("sky mine --gpus H100:8 --cuda cuda11 JOB", "cuda11"),
        ("sky mine --gpus H100:8 --nodes 0 JOB", "nodes=0 must be at least 1"),
        ("sky mine --topology v5e:8x8 --nodes 2 JOB", "a TPU slice counts as one"),
    ],
)
def test_a_mistake_is_one_message_and_asks_no_cluster(cluster, capfd, given, words):
    for tool in ("gcloud", "kubectl", "sbatch", "sky"):
        cluster.program(tool)
    typed = given.replace("JOB", "-- srt quickstart --run-dir gs://b/r").split()
    assert "".join(words.split()) in "".join(refused(capfd, *typed).split())
    assert not cluster.calls()


def test_the_resume_that_was_typed_stays_alone(cluster, capfd):
    main(["launch", *GKE, "--print", *JOB, "--resume"])
    (slice_,) = yaml.safe_load(capfd.readouterr().out)["spec"]["replicatedJobs"]
    (pod,) = slice_["template"]["spec"]["template"]["spec"]["containers"]
    assert pod["command"].count("--resume") == 1
    assert json.dumps(pod["command"])


def test_a_wheel_has_nothing_to_copy(cluster, capfd, monkeypatch, tmp_path):
    cluster.program("gcloud")
    cluster.program("sky")
    monkeypatch.setattr("launch.cluster.job.CHECKOUT", tmp_path)
    for where in (TPU_VM, SKY):
        assert "is no checkout" in refused(capfd, *where, *JOB)
    assert not cluster.calls()
