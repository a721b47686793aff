"""A run of many processes, one a host: they find each other, agree, wait for each other, end together.

Device arrays travel by JAX's collectives; here are the few words that the hosts exchange beside them,
through the key-value store of `jax.distributed`. With one process every function is the plain thing:
`first` calls, `gather` returns a list of one, `barrier` returns at once.

Calls that exchange words (`first`, `gather`, `barrier`, `any_of`, `split`) are made by the main thread
of every process in the same order; that order is their name.

A process that fails says so in the store before it ends, and a thread of every other process, which
looks each second, then ends its own with the same exit code. One that dies says nothing: it is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from selfevolve_jax import rendezvous
from selfevolve_jax.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
# The names that the launchers of JAX jobs use; JAX itself reads the first.
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_LOOK_S = 1.0  # between two looks at the other processes
_SAME_S = 3.0  # within which processes that make the same mistake have all said so
_AGAIN = "The newest checkpoint is whole; start all again with --resume."
_READ_S = 20.0  # that process 0 waits for the others to have read why it ends
_UNWIND_S = 30.0  # that a failing process may take to close its files


class LostProcess(UserError):
    """Another process is gone, or does not come. The last checkpoint is whole; code 75, "try again"."""

    exit_code = 75


@dataclass(frozen=True)
class HostsConfig:
    """How the processes of one run find each other. Nothing need be said on one host, nor on TPU pods,
    SLURM, Open MPI and Kubernetes, where JAX finds out by itself.

    coordinator: HOST:PORT of process 0, as the others see it. processes: how many there are; 1, without
    the other two, is this one alone, whatever the cluster says. index: this one's, from 0.
    timeout_s: how long one waits for another. lost_after_s: how long one may be silent before it counts
    as dead.
    """

    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    timeout_s: float = 300.0
    lost_after_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("timeout_s", "lost_after_s"):
            if not getattr(self, name) >= 1:
                raise UserError(f"hosts.{name}={getattr(self, name)} must be at least 1 second.")
        if self.processes is not None and self.processes < 1:
            raise UserError(f"hosts.processes={self.processes} must be at least 1.")
        if self.coordinator is None and self.index is None and self.processes in (None, 1):
            return
        names = ("coordinator", "processes", "index")
        missing = [f"hosts.{name}" for name in names if getattr(self, name) is None]
        if missing:
            given = [f"hosts.{n}={getattr(self, n)}" for n in names if f"hosts.{n}" not in missing]
            raise UserError(
                f"{', '.join(given)} without {' and '.join(missing)}: the three go together. Give "
                "--hosts.coordinator HOST:PORT --hosts.processes N --hosts.index I, or none of them."
            )
        assert self.coordinator is not None and self.processes is not None
        rendezvous.split_address(self.coordinator)
        if self.index is not None and not 0 <= self.index < self.processes:
            raise UserError(
                f"hosts.index={self.index} must be from 0 to {self.processes - 1}, as "
                f"hosts.processes={self.processes}."
            )


@dataclass
class _Run:
    """This process's place in a run of many. `calls` counts exchanges, which gives them their names."""

    client: Any
    coordinator: str
    index: int
    processes: int
    config: HostsConfig
    tell: Callable[[str], None]
    calls: int = 0
    read: str | None = None  # the last gathering's folder in the store
    stop_posted: bool = False
    told: BaseException | None = None
    me: dict[str, Any] = field(default_factory=dict)
    peers: dict[int, dict[str, Any]] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)  # silent: nobody waits for them to end
    thread: threading.Thread | None = None
    done: threading.Event = field(default_factory=threading.Event)
    ending: threading.Lock = field(default_factory=threading.Lock)


_run: _Run | None = None
_handlers: list[Any] = []


def connect(config: HostsConfig, tell: Callable[[str], None]) -> None:
    """Joins the run's other processes, if there are any; before anything touches a device. tell: shows
    a message, when another process has failed.

    UserError if the coordinator cannot be reached, or a process does not come, within timeout_s."""
    global _run
    if _run is not None:
        return
    place = find(config, os.environ)
    if place is None:
        return
    coordinator, processes, index, local_devices = place
    if processes == 1 and config.coordinator is None:
        return  # a cluster's job on one host
    import jax

    rendezvous.meet(coordinator, processes, index, config.timeout_s, f"jax {jax.__version__}")
    if index:
        _explain_abort(coordinator, processes, index, tell)
    # Its handler takes SIGTERM away from Python; `endings.stop_signals` and `any_of` do this work.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        processes,
        index,
        local_device_ids=local_devices,
        cluster_detection_method="deactivate",  # that is done
        initialization_timeout=math.ceil(config.timeout_s),
        # JAX ends a process that misses another with a stack trace: our own message comes first
        heartbeat_timeout_seconds=math.ceil(config.lost_after_s) + 60,
    )
    from jax._src import distributed  # the client has no public name; Orbax takes it from here too

    client = distributed.global_state.client
    _run = _Run(client, coordinator, index, processes, config, tell)
    _run.me = {"beat": 0, "state": "running", "host": socket.gethostname()}
    _post(_run)
    _run.thread = threading.Thread(target=_look, args=(_run,), name="hosts", daemon=True)
    _run.thread.start()


def find(
    config: HostsConfig, environment: Mapping[str, str]
) -> tuple[str, int, int, Sequence[int] | None] | None:
    """(coordinator, processes, index, local device ids) by the options, else by the environment, else
    by the cluster; None for a process that is alone."""
    if config.processes == 1 and config.coordinator is None:
        return None
    if config.coordinator is not None:
        assert config.processes is not None and config.index is not None
        return config.coordinator, config.processes, config.index, None
    if all(environment.get(name) for name in ENVIRONMENT):
        coordinator, *numbers = (environment[name] for name in ENVIRONMENT)
        if not all(number.isdecimal() for number in numbers):
            raise UserError(
                f"{ENVIRONMENT[1]}={numbers[0]} and {ENVIRONMENT[2]}={numbers[1]} must be whole "
                "numbers."
            )
        HostsConfig(coordinator, *map(int, numbers))  # the same checks
        return coordinator, int(numbers[0]), int(numbers[1]), None
    if in_cluster(environment):
        return _ask_jax(config.timeout_s, environment)
    given = [f"{name}={environment[name]}" for name in ENVIRONMENT if environment.get(name)]
    if given:
        raise UserError(
            f"{' and '.join(given)} in the environment: {', '.join(ENVIRONMENT)} go together. Set all "
            "three, or --hosts.processes 1 to run on this host alone."
        )
    return None


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether JAX's own detection is worth asking: it looks on the network, for seconds, on machines
    with a TPU library."""

    def many(name: str) -> bool:
        return environment.get(name, "").isdecimal() and int(environment[name]) > 1

    slurm = "SLURM_STEP_NODELIST" in environment and many("SLURM_NTASKS")
    mpi = "OMPI_MCA_orte_hnp_uri" in environment and many("OMPI_COMM_WORLD_SIZE")
    kubernetes = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    kubernetes = kubernetes and importlib.util.find_spec("kubernetes") is not None  # JAX asks it
    workers = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
    gke = any("," in environment.get(name, "") for name in workers) or many("MEGASCALE_NUM_SLICES")
    return slurm or mpi or kubernetes or gke or _on_tpu_vm(environment)


def _on_tpu_vm(environment: Mapping[str, str]) -> bool:
    """A Google machine with TPUs, which knows its pod from the metadata server alone."""
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu"):
        return False
    if "TPU_SKIP_MDS_QUERY" in environment:  # there is no such server
        return False
    return any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))


def _ask_jax(
    timeout_s: float, environment: Mapping[str, str]
) -> tuple[str, int, int, Sequence[int] | None] | None:
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks

    try:
        coordinator, processes, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            environment.get(ENVIRONMENT[0]), None, None, None, None, math.ceil(timeout_s)
        )
    except Exception as error:
        raise UserError(
            f"this looks like one of several hosts, and JAX cannot find the others: {error}. Give "
            "--hosts.coordinator HOST:PORT --hosts.processes N --hosts.index I, or --hosts.processes 1 "
            "to run on this one alone."
        ) from error
    if coordinator is None or processes is None or index is None:
        return None
    # Under SLURM JAX takes a process for each GPU as given. A node's only task has all of them.
    alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if alone or environment.get("JAX_LOCAL_DEVICE_IDS"):
        devices = None
    return coordinator, processes, index, devices


def connected() -> bool:
    """Whether this process is part of a run of many."""
    return _run is not None


def count() -> int:
    """How many processes the run has."""
    return 1 if _run is None else _run.processes


def first(what: str, function: Callable[[], T]) -> T:
    """What `function` gives on process 0, on every process: decisions that are read off a disk or a
    clock. The value is what JSON can hold. A UserError there is raised everywhere."""
    run = _run
    if run is None:
        return function()
    key = f"first/{_next(run)}"
    if run.index == 0:
        try:
            value = function()
        except UserError as error:
            words = {"error": str(error), "code": error.exit_code}
            run.client.key_value_set(key, json.dumps(words))
            raise
        run.client.key_value_set(key, json.dumps({"value": value}))
        return value
    try:
        said = json.loads(run.client.blocking_key_value_get(key, _ms(run)))
    except _jax_error() as error:
        _raise_lost(run, error, [0], what)
    if "error" in said:
        told = UserError(said["error"])
        told.exit_code = said["code"]  # on the instance: the type does not travel
        raise told
    return said["value"]


def gather(what: str, value: Any) -> list[Any]:
    """Every process's value, by index, on every process; what JSON can hold."""
    run = _run
    if run is None:
        return [value]
    number = _next(run)
    here = f"gather/{number}/"
    run.client.key_value_set(f"{here}{run.index}", json.dumps(value))
    try:
        run.client.wait_at_barrier(f"gather/{number}", _ms(run))
    except _jax_error() as error:
        came = _by_index(run, here)
        _raise_lost(run, error, [i for i in range(run.processes) if i not in came], what)
    values = _by_index(run, here)
    if run.index == 0:  # all have read the one before, as all are past this barrier
        if run.read is not None:
            run.client.key_value_delete(run.read)
        run.read = here
    return [values[i] for i in range(run.processes)]


def barrier(what: str) -> None:
    """Returns once every process is here. LostProcess, naming those that are not, after timeout_s."""
    gather(what, None)


def any_of(what: str, flag: bool) -> bool:
    """Whether the flag was set on some process by now; the same answer, at the same call, on all. What
    another process sets may be told one call later."""
    run = _run
    if run is None:
        return flag
    if flag and not run.stop_posted:
        run.client.key_value_set(f"flag/{run.index}", "1")
        run.stop_posted = True
    return first(what, lambda: flag or bool(_by_index(run, "flag/")))


def split(what: str, tasks: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """work(tasks), each process doing its share; results in the order of the tasks, on all. What
    depends on a clock (a time limit) is so decided once."""
    run = _run
    if run is None or not tasks:
        return list(work(tasks))
    shares = gather(what, list(work(tasks[run.index :: run.processes])))
    results: list[Any] = [None] * len(tasks)
    for i, share in enumerate(shares):
        results[i :: run.processes] = share
    return results


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """An error that leaves this block is told to the other processes, before anything that it unwinds
    waits for them."""
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        _announce(error)
        raise


def is_spokesman(message: str) -> bool:
    """Whether this process is the one to show an error: not where process 0 shows the same."""
    run = _run
    if run is None or run.index == 0:
        return True
    return not _soon(lambda: run.peers.get(0, {}).get("message") == message)


def leave() -> None:
    """The end of a run that went well: waits for all."""
    global _run
    run = _run
    if run is None:
        return
    barrier("the end of the run")
    run.done.set()
    assert run.thread is not None
    run.thread.join(10 * _LOOK_S)
    import jax

    jax.distributed.shutdown()
    _run = None


def end(code: int) -> None:
    """Ends this process of a run that went wrong, without JAX's own end, which waits for processes that
    are stuck; with one process it returns."""
    run = _run
    if run is not None:
        with run.ending:
            _end(run, code)


def _explain_abort(
    coordinator: str, processes: int, index: int, tell: Callable[[str], None]
) -> None:
    """When process 0 dies, JAX's client aborts this process at once, with a stack trace and code 134,
    before Python hears of it. A C handler of SIGABRT adds what that means, and our exit code."""
    host, port = rendezvous.split_address(coordinator)

    def aborted(number: int) -> None:
        try:
            socket.create_connection((host, port), timeout=2.0).close()
        except OSError:
            tell(
                f"process {index} of {processes}: process 0 of {processes} is lost: the coordinator "
                f"{coordinator} is gone. {_AGAIN}"
            )
            os._exit(LostProcess.exit_code)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _handlers.append(handler)  # C holds no reference
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def _announce(error: BaseException) -> None:
    run = _run
    if run is None or run.told is not None:
        return
    run.told = error
    if _from_jax(error):
        # A collective breaks when another process fails or dies, which our thread will learn and tell:
        # then it ends this process. If it does not, the error is this process's own.
        _soon(lambda: False, 2 * _LOOK_S + _SAME_S + run.config.lost_after_s)
    code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    run.me |= {"state": "failed", "code": code, "message": message, "since": time.monotonic()}
    with contextlib.suppress(Exception):
        _post(run)


def _from_jax(error: BaseException | None) -> bool:
    """Also where it came through Orbax, or was made another error on the way."""
    while error is not None and not isinstance(error, UserError):
        if isinstance(error, _jax_error()):
            return True
        error = error.__cause__ or error.__context__
    return False


def _look(run: _Run) -> None:
    """The thread: says that this process is alive, and looks whether the others are."""
    beats: dict[int, int | None] = dict.fromkeys(range(run.processes))
    silent = dict.fromkeys(range(run.processes), 0.0)
    unanswered, looked = 0.0, time.monotonic()
    while not run.done.wait(_LOOK_S):
        run.me["beat"] += 1
        # Time in which this thread itself did not come to run, on a busy machine, tells of nobody else.
        now = time.monotonic()
        passed, looked = min(now - looked, 2 * _LOOK_S), now
        try:
            _post(run)
            said = _by_index(run, "host/")
        except Exception as error:
            unanswered += passed
            if unanswered > run.config.lost_after_s:
                _die(run, _lost_words(run, [0], f"the coordinator is silent: {error}"), 75)
            continue
        unanswered, run.peers = 0.0, said
        for i in beats.keys() - {run.index}:
            latest = said.get(i, {}).get("beat")
            silent[i] = silent[i] + passed if latest == beats[i] else 0.0
            beats[i] = latest
            if silent[i] > run.config.lost_after_s:
                run.lost.add(i)
                words = f"nothing was heard of it for {run.config.lost_after_s:g} s"
                _die(run, _lost_words(run, [i], words), LostProcess.exit_code)
        failed = [i for i, one in said.items() if one["state"] == "failed" and i != run.index]
        if failed and not _soon(lambda: run.me["state"] == "failed"):
            one = said[min(failed)]
            words = f"process {min(failed)} ({one['host']}) ended the run: {one['message']}"
            _die(run, words, one["code"])
        if run.me["state"] == "failed" and now - run.me["since"] > _UNWIND_S:
            _die(run, run.me["message"], run.me["code"])


def _die(run: _Run, message: str, code: int) -> NoReturn:
    """From the thread: shows why, and ends the process wherever its main thread is."""
    with run.ending:
        run.tell(f"process {run.index} of {run.processes}: {message}")
        run.me |= {"code": code, "message": message}
        _end(run, code)


def _end(run: _Run, code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            if stream.isatty():
                stream.write("\x1b[?25h")  # a progress bar hides the cursor
            stream.flush()
    run.me["state"] = "ended" if run.me["state"] != "failed" else "failed"
    run.me["ended"] = True
    with contextlib.suppress(Exception):
        _post(run)
        if run.index == 0:  # the store is ours: the others must first have read it
            deadline = time.monotonic() + _READ_S
            while time.monotonic() < deadline:
                said = _by_index(run, "host/")
                if all(one.get("ended") or i in run.lost for i, one in said.items()):
                    break
                time.sleep(0.1)
            time.sleep(0.2)
    os._exit(code)


def _post(run: _Run) -> None:
    words = {k: v for k, v in dict(run.me).items() if k != "since"}  # two threads write it
    run.client.key_value_set(f"host/{run.index}", json.dumps(words), allow_overwrite=True)


def _by_index(run: _Run, folder: str) -> dict[int, Any]:
    """What each process has put into a folder of the store, under its index."""
    entries = run.client.key_value_dir_get(folder)
    return {int(key.rpartition("/")[2]): json.loads(text) for key, text in entries}


def _soon(true: Callable[[], bool], within_s: float = _SAME_S) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _next(run: _Run) -> int:
    run.calls += 1
    return run.calls


def _ms(run: _Run) -> int:
    return math.ceil(1000 * run.config.timeout_s)


def _jax_error() -> type[Exception]:
    import jax

    return jax.errors.JaxRuntimeError


def _lost_words(run: _Run, missing: Sequence[int], why: str) -> str:
    names = " and ".join(
        f"{i} ({run.peers[i]['host']})" if i in run.peers else str(i) for i in missing
    )
    return f"process {names} of {run.processes} is lost: {why}. {_AGAIN}"


def _raise_lost(run: _Run, error: Exception, missing: Sequence[int], what: str) -> NoReturn:
    if "DEADLINE_EXCEEDED" not in str(error) and "timed out" not in str(error).lower():
        raise error
    why = f"it did not come to {what} within {run.config.timeout_s:g} s"
    raise LostProcess(_lost_words(run, missing, why)) from error
