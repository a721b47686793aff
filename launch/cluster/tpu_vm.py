"""`selfevolve launch tpu-vm`: TPU VMs by gcloud's queued resources, and one job on all their workers.

`run` is the whole of it: it asks for the machines, copies the checkout, starts the job on every worker
and watches, from this machine, until the job ends. A watcher that is itself stopped loses nothing: the
job goes on, and the same command finds it again.

    state     what is done
    ready     the workers are asked how their jobs are: see `verdict`
    waiting   nothing; the machines are being made or repaired
    gone      preempted, say: deleted, asked for again, and the job resumes
    absent    asked for
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from launch.cluster.job import (
    CHECKOUT,
    Job,
    ToolFailed,
    check_name,
    need_checkout,
    need_tool,
    needs_remote,
    run,
)
from launch.cluster.tpu import Slice, read_slice
from selfevolve_jax.errors import UserError

# What the trainer exits with when it was told to stop, and when another host of its run is gone.
FROM_OUTSIDE = {143, 75}
UNHEARD = (
    10  # polls without a word from every worker of a slice said to be ready, before it is given up
)
COPY, ARCHIVE, WORKER = "selfevolve", "selfevolve.tar.gz", "selfevolve/launch/cluster/worker.sh"
GOING = ("SUSPENDING", "DELETING", "STOPPING")  # cannot be deleted yet
GONE = ("FAILED", "SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED", *GOING)

Commands = dict[str, list[list[str]]]


@dataclass(frozen=True)
class TPUVM:
    """Runs a command on a TPU slice, or does one part of that.

    action: run (create, sync, start, watch until the job ends, and again after each preemption), or one
    of create, sync, start, logs, stop, delete. name: of the queued resource and its node. topology: the
    slice, as v5e:8x8. spot: preemptible. runtime_version: of the VM's image. keep: leave the machines
    when `run` ends; else they are deleted, as they cost as much idle as at work. max_restarts: how many
    preemptions and other ends from outside `run` mends. poll_seconds: how often it looks. print: show
    what would be done, and touch nothing.
    """

    action: Annotated[
        Literal["run", "create", "sync", "start", "logs", "stop", "delete"], tyro.conf.Positional
    ]
    name: Annotated[str, tyro.conf.Positional]
    zone: str
    topology: str
    project: str | None = None
    spot: bool = False
    runtime_version: str | None = None
    keep: bool = False
    max_restarts: int = 100
    poll_seconds: float = 30.0
    print: bool = False

    def __post_init__(self):
        check_name(self.name)
        if self.max_restarts < 0:
            raise UserError(f"max_restarts={self.max_restarts} must be at least 0.")
        if self.poll_seconds <= 0:
            raise UserError(f"poll_seconds={self.poll_seconds} must be above 0.")


def launch(options: TPUVM, job: Job | None) -> None:
    """job: for run and start, which need one."""
    if job is not None and options.action not in ("run", "start"):
        raise UserError(f"tpu-vm {options.action} takes no command after --.")
    if job is not None:
        needs_remote(job, "TPU VMs")
    slice_ = read_slice(options.topology)
    _ = slice_.accelerator_type  # refused here, before anything is done
    if options.print:
        print(plan(options, slice_, job))
        return
    need_tool("gcloud", "install the Google Cloud CLI, then `gcloud auth login`")
    if options.action in ("run", "sync"):
        need_checkout()
    if options.action == "run":
        assert job is not None
        supervise(options, slice_, job)
        return
    does = commands(options, slice_, job.words if job else ())
    if options.action == "sync":
        with tempfile.TemporaryDirectory(prefix="selfevolve-") as folder:
            pack(CHECKOUT, Path(folder) / ARCHIVE)
            sync(does, Path(folder) / ARCHIVE)
    else:
        run(does[options.action][0])


def commands(options: TPUVM, chosen: Slice, words: Sequence[str]) -> Commands:
    """Every gcloud command, by what it is for. words: of the job."""
    tpus = ["gcloud", "compute", "tpus"]
    where = [f"--zone={options.zone}"]
    where += [f"--project={options.project}"] if options.project else []
    create = [
        *(*tpus, "queued-resources", "create", options.name, *where),
        f"--node-id={options.name}",
        f"--accelerator-type={chosen.accelerator_type}",
        f"--runtime-version={options.runtime_version or chosen.generation.runtime}",
        *(["--spot"] if options.spot else []),
        "--quiet",
    ]

    def on(workers: str, command: str) -> list[str]:
        ssh = [*tpus, "tpu-vm", "ssh", options.name, *where, f"--worker={workers}", "--quiet"]
        return [*ssh, f"--command={command}"]

    unpack = f"rm -rf {COPY} && mkdir {COPY} && tar -xzf {ARCHIVE} -C {COPY} && {WORKER} setup"
    described = ["describe", options.name, *where]
    return {
        "create": [create],
        "sync": [
            [
                *(*tpus, "tpu-vm", "scp", ARCHIVE, f"{options.name}:{ARCHIVE}", *where),
                *("--worker=all", "--quiet"),
            ],
            on("all", unpack),
        ],
        "start": [on("all", shlex.join([WORKER, "start", *words]))],
        "status": [on("all", f"{WORKER} status")],
        "stop": [on("all", f"{WORKER} stop")],
        "logs": [on("0", "tail -n 100 -F selfevolve-job/log")],
        "last": [on("all", "hostname && tail -n 30 selfevolve-job/log")],
        "state": [[*tpus, "queued-resources", *described, "--format=value(state.state)"]],
        "node": [[*tpus, "tpu-vm", *described, "--format=value(state)"]],
        "delete": [
            [*tpus, "queued-resources", "delete", options.name, *where, "--force", "--quiet"]
        ],
    }


def plan(options: TPUVM, chosen: Slice, job: Job | None) -> str:
    """What `launch` would do, as shell lines and comments."""
    said = commands(options, chosen, job.words if job else ())

    def lines(*names: str) -> list[str]:
        return [shlex.join(command) for name in names for command in said[name]]

    packed = [f"# {ARCHIVE}: the files that git tracks in {CHECKOUT}, or does not ignore"]
    if options.action == "sync":
        return "\n".join(packed + lines("sync"))
    if options.action != "run":
        return "\n".join(lines(options.action))
    return "\n".join(
        [
            f"# {chosen.chips} chips on {chosen.hosts} worker(s)",
            *lines("create"),
            "# until ACTIVE and READY:",
            *lines("state", "node"),
            *packed,
            *lines("stop", "sync", "start"),
            f"# every {options.poll_seconds:g} s, until the job has ended on every worker:",
            *lines("state", "node", "status"),
            f"# preempted: delete, and all of the above again, at most {options.max_restarts} times",
            *lines("delete"),
            "# stopped by a signal or a reboot, with the machines there: `worker.sh stop` and on again",
            "# when the job has ended, well or by a failure of its own:",
            *lines("last"),
            *(["# the machines are kept"] if options.keep else lines("delete")),
        ]
    )


def supervise(options: TPUVM, chosen: Slice, job: Job) -> None:
    """Until the job ends. ToolFailed when it fails of itself, or has been mended too often."""
    does = commands(options, chosen, job.words)
    with tempfile.TemporaryDirectory(prefix="selfevolve-") as folder:
        archive = Path(folder) / ARCHIVE
        pack(CHECKOUT, archive)  # once: every life runs the code of the first
        try:
            end = live(options, chosen, does, archive)
        except KeyboardInterrupt:
            say(
                f"{options.name}: no longer watched. The job goes on, and so does its bill; the same "
                f"command watches it again, and this ends it:\n{shlex.join(does['delete'][0])}"
            )
            raise
    subprocess.run(does["last"][0])
    if not options.keep:
        run(does["delete"][0])
    if end == "failed":
        raise ToolFailed(
            f"{options.name}: the job failed by itself, so it is not started again; its last words are "
            f"above, its run is in {job.folder}. Fix that, and launch again."
        )
    say(f"{options.name}: done; the run is in {job.folder}")


def live(options: TPUVM, chosen: Slice, does: Commands, archive: Path) -> str:
    """One life of the job after another, until it is "done" or has "failed". ToolFailed where the job
    cannot be started, or has been stopped from outside too often."""
    if state_of(does) == "unknown":
        raise ToolFailed(
            f"{options.name}: gcloud cannot say what is there; why, stands above. Nothing was changed."
        )
    unstarted = 0
    for life in range(options.max_restarts + 1):
        acquire(options, does)
        if life == 0 and "running" in (asked(does) or []):
            say(f"{options.name}: a job is running there already; from here on it is watched")
        elif not start(does, archive):
            unstarted += 1
            if unstarted >= 3 and state_of(does) == "ready":
                raise ToolFailed(
                    f"{options.name}: the job could not be started, three times in a row; why, stands "
                    "above. The machines are there, and are paid for until "
                    f"`{shlex.join(does['delete'][0])}`."
                )
            continue
        unstarted = 0
        end = watch(options, chosen, does)
        if end in ("done", "failed"):
            return end
        say(f"{options.name}: {end} in life {life + 1}; the job resumes")
        if end == "unheard":
            run(does["delete"][0])
    raise ToolFailed(
        f"{options.name}: restarted {options.max_restarts} times, and stopped from outside again. What "
        "is left of the machines is as it is. Fix: see `tpu-vm logs`, or raise --max-restarts."
    )


def acquire(options: TPUVM, does: Commands) -> None:
    """Asks for the machines where there are none, or none but preempted ones; waits until they are
    ready. ToolFailed if gcloud refuses, at once or later."""
    mine, told = False, ""
    while (state := state_of(does)) != "ready":
        if state != told:
            say(f"{options.name}: {state.lower()}")
            told = state
        if state == "FAILED" and mine:
            raise ToolFailed(
                f"{options.name}: the request for machines failed. Fix: see why with "
                f"`{shlex.join(does['state'][0][:-1])}`, delete it and launch again."
            )
        if state in GONE and state not in GOING:
            run(does["delete"][0])
        if state == "absent" or (state in GONE and state not in GOING):
            run(does["create"][0])
            mine = True
        time.sleep(options.poll_seconds)


def start(does: Commands, archive: Path) -> bool:
    """The checkout and the job onto every worker; whether that went well. A preemption may come
    between, which is for the caller to see."""
    subprocess.run(does["stop"][0], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        sync(does, archive)
        run(does["start"][0])
    except ToolFailed as error:
        say(str(error))
        return False
    return True


def watch(options: TPUVM, chosen: Slice, does: Commands) -> str:
    """Until something is to be done: "done", "failed", "stopped", "preempted" or "unheard".

    An end that is not good counts only when it is seen twice, with the machines ready in between: of a
    slice that is being preempted, some workers fail before it is seen to be gone.
    """
    unheard, before = 0, ""
    while True:
        state = state_of(does)
        if state in GONE or state == "absent":
            return "preempted"
        seen = "waiting"
        if state == "ready":
            answers = asked(does)
            seen = "unheard" if answers is None else verdict(answers, chosen.hosts)
            unheard = unheard + 1 if seen == "unheard" else 0
            if seen == "done" or (seen in ("failed", "stopped") and seen == before):
                return seen
            if unheard == UNHEARD:
                return "unheard"
        before = seen
        time.sleep(options.poll_seconds)


def state_of(does: Commands) -> str:
    """ "ready", "absent", or gcloud's own word for another state of the request or its node.

    A describe that fails for another reason than that there is nothing counts as waiting.
    """
    for name, good in (("state", "ACTIVE"), ("node", "READY")):
        asked_for = subprocess.run(does[name][0], capture_output=True, text=True)
        word = asked_for.stdout.strip()
        if asked_for.returncode:
            missing = re.search("NOT_FOUND|not found|was not found", asked_for.stderr)
            if missing:
                return "absent" if name == "state" else "TERMINATED"
            say(asked_for.stderr.strip())
            return "unknown"
        if word != good:
            return word or "unknown"
    return "ready"


def asked(does: Commands) -> list[str] | None:
    """How the jobs are of those workers that answer: "running", "none", "lost" or "exit CODE" each.
    None where gcloud hangs."""
    try:
        answer = subprocess.run(does["status"][0], capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return None
    return re.findall(r"\bjob (running|none|lost|exit \d+) on ", answer.stdout)


def verdict(answers: Sequence[str], hosts: int) -> str:
    """What the workers' answers mean together: "running", "done", "failed", "stopped" or "unheard".

    A signal, a lost peer or a machine that started anew ("lost") is an end from outside, whatever the
    other workers then died of. Any other code is the job's own.
    """
    if len(answers) < hosts:
        return "unheard"
    codes = {int(a.removeprefix("exit ")) for a in answers if a.startswith("exit ")}
    if "lost" in answers or "none" in answers or codes & FROM_OUTSIDE:
        return "stopped"
    if codes - {0}:
        return "failed"
    return "running" if "running" in answers else "done"


def sync(does: Commands, archive: Path) -> None:
    """Copies the packed checkout to every worker, and installs it there."""
    copy, unpack = does["sync"]
    run([str(archive) if word == ARCHIVE else word for word in copy])
    run(unpack)


def pack(checkout: Path, archive: Path) -> None:
    """The files that git tracks or does not ignore, as they are now, uncommitted changes and all."""
    listed = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others"]
    try:
        found = subprocess.run([*listed, "--exclude-standard"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{checkout} is no git checkout, so what to copy is unknown.") from error
    with tarfile.open(archive, "w:gz") as tar:
        for name in sorted(set(found.stdout.decode().split("\0")) - {""}):
            if (checkout / name).exists():
                tar.add(checkout / name, name, recursive=False)


def say(text: str) -> None:
    print(text, flush=True)
