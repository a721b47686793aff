"""How processes find each other, agree, and miss each other: threads for the meeting, two real
processes of JAX for the rest. No device computes anything here; tests/test_hosts_run.py trains."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from selfevolve_jax import hosts, rendezvous
from selfevolve_jax.errors import UserError
from selfevolve_jax.hosts import HostsConfig

ROOT = Path(__file__).resolve().parents[1]
SLURM = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"coordinator": "a:1"}, ["hosts.coordinator=a:1", "hosts.processes and hosts.index"]),
        ({"processes": 2}, ["hosts.processes=2", "hosts.coordinator and hosts.index"]),
        ({"index": 0}, ["hosts.index=0 without", "three go together"]),
        ({"coordinator": "a:1", "index": 0}, ["without hosts.processes:"]),
        ({"coordinator": "a", "processes": 2, "index": 0}, ["'a' is not HOST:PORT"]),
        ({"coordinator": "a:0", "processes": 2, "index": 0}, ["'a:0' is not HOST:PORT"]),
        ({"coordinator": "a:1", "processes": 2, "index": 2}, ["hosts.index=2", "from 0 to 1"]),
        ({"coordinator": "a:1", "processes": 2, "index": -1}, ["hosts.index=-1", "from 0 to 1"]),
        ({"processes": 0}, ["hosts.processes=0", "at least 1"]),
        ({"timeout_s": 0.5}, ["hosts.timeout_s=0.5", "at least 1 second"]),
        ({"lost_after_s": float("nan")}, ["hosts.lost_after_s=nan"]),
    ],
)
def test_options_that_do_not_fit_are_named(given, said):
    with pytest.raises(UserError) as error:
        HostsConfig(**given)
    assert all(part in str(error.value) for part in said), error.value


def test_where_the_place_of_a_process_comes_from(monkeypatch):
    three = dict(zip(hosts.ENVIRONMENT, ("10.0.0.1:99", "4", "3"), strict=True))
    typed = HostsConfig("10.0.0.2:98", 2, 1)
    assert hosts.find(typed, three) == ("10.0.0.2:98", 2, 1, None)
    assert hosts.find(HostsConfig(), three) == ("10.0.0.1:99", 4, 3, None)
    assert hosts.find(HostsConfig(processes=1), three | SLURM) is None
    assert hosts.find(HostsConfig(), {"JAX_PLATFORMS": "cpu"}) is None
    with pytest.raises(UserError, match=r"JAX_PROCESS_ID=3 in the environment: .* go together"):
        hosts.find(HostsConfig(), {"JAX_PROCESS_ID": "3", "JAX_PLATFORMS": "cpu"})
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES=four"):
        hosts.find(HostsConfig(), three | {"JAX_NUM_PROCESSES": "four"})
    with pytest.raises(UserError, match=r"hosts\.index=4 must be from 0 to 3"):
        hosts.find(HostsConfig(), three | {"JAX_PROCESS_ID": "4"})


def test_slurm_is_found_by_jax_itself(monkeypatch):
    """Port: JAX's own rule, 61440 + job id modulo 4096. One task a node has all of its devices."""
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert hosts.find(HostsConfig(), SLURM) == ("node07:61452", 2, 1, [0])
    whole = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert hosts.find(HostsConfig(), whole) == ("node07:61452", 2, 1, None)
    several = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
    assert hosts.find(HostsConfig(), several) == ("node07:61452", 2, 1, [0])


@pytest.mark.parametrize(
    ("environment", "asks"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),  # srun of one task
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "12"}, False),  # sbatch's own shell, without srun
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_a_cluster_is_asked_only_where_there_are_signs_of_one(environment, asks):
    assert hosts.in_cluster(environment | {"JAX_PLATFORMS": "cpu"}) is asks


def test_one_process_is_the_plain_thing():
    assert hosts.first("x", lambda: [1]) == [1] and hosts.gather("x", 2) == [2]
    assert hosts.any_of("x", True) is True and hosts.any_of("x", False) is False
    assert hosts.split("x", [1, 2, 3], lambda part: [10 * n for n in part]) == [10, 20, 30]
    assert hosts.count() == 1 and hosts.is_spokesman("x")
    hosts.barrier("x"), hosts.end(3), hosts.leave()
    with pytest.raises(ZeroDivisionError), hosts.telling():
        raise ZeroDivisionError


def met(*processes, timeout_s=30.0):
    """What each of (index, processes, told) says, started together at one port."""
    port, said = free_port(), {}

    def go(number, index, processes, told):
        try:
            rendezvous.meet(f"127.0.0.1:{port}", processes, index, timeout_s, told)
            said[number] = "met"
        except UserError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=go, args=(n, *p)) for n, p in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said[n] for n in range(len(processes))]


def test_all_meet_in_any_order():
    assert met((2, 3, ""), (0, 3, ""), (1, 3, "")) == ["met"] * 3


def test_who_does_not_come_is_named_to_those_who_did():
    said = met((0, 4, ""), (2, 4, ""), timeout_s=1.0)
    for words in said:
        assert "processes 1, 3 of 4 did not come to the coordinator 127.0.0.1:" in words
        assert "within 1 s" in words


def test_a_coordinator_that_is_not_there_is_named():
    (said,) = met((1, 2, ""), timeout_s=1.0)
    assert "the coordinator 127.0.0.1:" in said and "process 1 within 1 s" in said


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([(1, 3, "a"), (1, 3, "a")], "two processes have hosts.index=1"),
        ([(1, 2, "a")], "started with hosts.processes=2, and process 0 with 3"),
        ([(1, 3, "b")], "process 1 runs b, and process 0 a"),
    ],
)
def test_what_does_not_agree_is_told_to_all(others, words):
    for said in met((0, 3, "a"), *others):
        assert words in said


def test_what_is_no_process_of_ours_is_passed_over():
    port, said = free_port(), []

    def coordinator():
        rendezvous.meet(f"127.0.0.1:{port}", 2, 0, 30.0)
        said.append("met")

    thread = threading.Thread(target=coordinator)
    thread.start()
    for noise in (b"GET / HTTP/1.1\r\n\r\n\n", b"[1]\n", b'{"index": "x"}\n', b"\xff\n", b""):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as caller:
                    caller.sendall(noise)
                break
            except ConnectionRefusedError:
                continue
    assert not said
    rendezvous.meet(f"127.0.0.1:{port}", 2, 1, 30.0)
    thread.join()
    assert said == ["met"]


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"process 0 cannot listen on port {port}"):
            rendezvous.meet(f"127.0.0.1:{port}", 2, 0, 1.0)


TALK = """
import json, sys, time
from selfevolve_jax import hosts
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges.equivalence import Equivalence

index, port = int(sys.argv[1]), sys.argv[2]
config = hosts.HostsConfig(f"127.0.0.1:{port}", 2, index, timeout_s=60, lost_after_s=60)
hosts.connect(config, lambda text: print("TOLD", text, flush=True))
said = {
    "first": hosts.first("a", lambda: {"index": index}),
    "gather": hosts.gather("b", [index, "ä"]),
    "large": len(hosts.first("c", lambda: "x" * 8_000_000)),
    "split": hosts.split("d", list(range(5)), lambda part: [[index, n] for n in part]),
    "none": hosts.split("d", [], lambda part: 1 / 0 if part else []),
}

def refused():
    error = UserError("no such thing")
    error.exit_code = 143
    raise error

try:
    hosts.first("e", refused)
except UserError as error:
    said["error"] = [str(error), error.exit_code]
# The flag of process 1 alone: all are told the same, at the latest one call later.
flags = []
for turn in range(4):
    flags.append(hosts.any_of("f", index == 1 and turn >= 1))
    hosts.barrier("g")
said["flags"] = flags

# Each judges its share; one of the limits is hit, on one process, and counts on both.
class Counted(Equivalence):
    asked = 0
    def _ask(self, tasks):
        Counted.asked += len(tasks)
        self.timeouts += sum(task == ["slow"] for task in tasks)
        return [task != ["slow"] and len({a.strip("0") for a in task}) == 1 for task in tasks]

with Counted("math") as equivalence:
    pairs = [("1", "10"), ("2", "20"), ("3", "4"), ("slow", "1"), ("10", "1")]
    said["equal"] = equivalence.equal_pairs(pairs)
    said["timeouts"] = equivalence.timeouts
    said["asked"] = hosts.gather("h", Counted.asked)
print(json.dumps(said), flush=True)
if "miss" in sys.argv:
    if index == 1:
        time.sleep(60)
    else:
        object.__setattr__(config, "timeout_s", 2.0)
        try:
            with hosts.telling():
                hosts.barrier("the harvest")
        except hosts.LostProcess as error:
            print("LOST", error, error.exit_code, flush=True)
            hosts.end(error.exit_code)
hosts.leave()
"""


def processes(script, *arguments):
    """(exit codes, outputs) of two processes that run the script."""
    port = str(free_port())
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(i), port, *arguments],
            cwd=ROOT,
            env=environment | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [process.returncode for process in started], outputs


@pytest.mark.multiprocess
def test_two_processes_agree():
    codes, outputs = processes(TALK)
    assert codes == [0, 0], outputs
    one, other = (json.loads(out.splitlines()[-1]) for out in outputs)
    assert one == other
    assert one["first"] == {"index": 0} and one["gather"] == [[0, "ä"], [1, "ä"]]
    assert one["large"] == 8_000_000 and one["none"] == []
    assert one["split"] == [[0, 0], [1, 1], [0, 2], [1, 3], [0, 4]]
    assert one["error"] == ["no such thing", 143]
    assert one["flags"][0] is False and one["flags"][2:] == [True, True]
    assert one["equal"] == [True, True, False, False, True] and one["timeouts"] == 1
    # seven answers, then three pairs: one is the other way round, and one has the slow answer
    assert one["asked"] == [4 + 2, 3 + 1]


@pytest.mark.multiprocess
def test_a_barrier_names_who_does_not_come_and_ends_both():
    codes, outputs = processes(TALK, "miss")
    assert codes == [75, 75], outputs
    assert "LOST process 1 (" in outputs[0] and "of 2 is lost" in outputs[0]
    assert "it did not come to the harvest within 2 s" in outputs[0]
    assert "TOLD process 1 of 2: process 0 (" in outputs[1]
