"""Tests and solution in two sandboxes, joined by nothing but a socket.

In one process a solution can do whatever the runner can: exit 0, print what the runner would print,
redefine what an assertion does. Here the tests run where no line of the solution runs, and see it
only as answers to questions (inside/wire.py, inside/wire.mjs). What this proves: that every assertion
was evaluated by trusted code on values that the solution gave for it, and that the report is the
trusted side's. What it cannot prove: that a method of the solution which decides an assertion by
itself, such as its own __eq__, is honest; operations by which the reference's objects decide nothing
are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from selfevolve_jax.dgm import sockets
from selfevolve_jax.dgm.contract import Unavailable
from selfevolve_jax.dgm.sandbox.job import Box, Job, Limits, Outcome, SandboxError
from selfevolve_jax.dgm.sandbox.pythons import python

LIMITS = Limits(wall_s=60.0, cpu_s=60.0, memory_mib=1024)
REASON_CHARS = 500
LIMIT = "ended by its limit of"  # in Graded.broken
GONE = "the other side has ended"  # in a test's own words (inside/wire.py, wire.mjs)


@dataclass(frozen=True)
class Graded:
    """tests: name -> whether it passed, of those that ran to their end. broken: why there are no more,
    "" where all ran. why: a failed test's name -> its message. decides: the operations by which the
    solution's objects decided assertions (Python). log: the end of what the solution wrote."""

    tests: Mapping[str, bool]
    broken: str
    why: Mapping[str, str] = field(default_factory=dict)
    decides: tuple[str, ...] = ()
    log: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0


def python_tests(
    tests: Mapping[str, bytes],
    modules: Sequence[str],
    solution: Mapping[str, bytes],
    box: Box,
    decides: Sequence[str] | None = None,
    limits: Limits = LIMITS,
) -> Graded:
    """Runs unittest test modules against a solution.

    tests: the trusted files (paths -> content), modules: the names of those that hold tests. solution:
    the untrusted files; every top-level .py among them can be imported by the tests. decides: as the
    reference's run returned it; None for that run itself. Raises Unavailable."""
    program, mounts = python(box)
    plan = {
        "tests": list(modules),
        "solution": [name[:-3] for name in solution if name.endswith(".py") and "/" not in name],
        "decides": None if decides is None else list(decides),
    }
    trusted = Job(
        argv=(*program, "-s", "-B", "tests_py.py", "plan.json", "tests"),
        files={
            **_inside("tests_py.py", "wire.py", "join.py"),
            "plan.json": json.dumps(plan).encode(),
            **{f"tests/{path}": content for path, content in tests.items()},
        },
        mounts=mounts,
        limits=limits,
    )
    untrusted = Job(
        argv=(*program, "-s", "-B", ".apart/solution_py.py", "."),
        files={
            **solution,
            **{
                f".apart/{k}": v for k, v in _inside("solution_py.py", "wire.py", "join.py").items()
            },
        },
        mounts=mounts,
        limits=limits,
    )
    return _graded(trusted, untrusted, box)


def javascript_tests(
    tests: Mapping[str, bytes],
    specs: Sequence[str],
    solution: Mapping[str, bytes],
    box: Box,
    limits: Limits = LIMITS,
) -> Graded:
    """As `python_tests`, for files of tests written for jest. A solution's file is a module where it
    imports or exports as one, and CommonJS otherwise."""
    program, mounts = python(box)
    graded = Graded({}, "")
    sources = [f for f in solution if f.endswith((".js", ".mjs", ".cjs")) and "/" not in f]
    kind = "module" if any(_is_module(solution[f]) for f in sources) else "commonjs"
    for spec in specs:
        plan = {"spec": spec, "folder": "/work/tests", "solution": sources}
        trusted = Job(
            argv=(*program, "-s", "join.py", "node", "tests_js.mjs", "plan.json"),
            files={
                **_inside("tests_js.mjs", "wire.mjs", "expect.mjs", "join.py"),
                "plan.json": json.dumps(plan).encode(),
                **{f"tests/{path}": content for path, content in tests.items()},
            },
            mounts=mounts,
            limits=_for_node(limits),
        )
        untrusted = Job(
            argv=(
                *program,
                "-s",
                "/work/.apart/join.py",
                "node",
                "/work/.apart/solution_js.mjs",
                ".",
            ),
            files={
                **solution,
                "package.json": json.dumps({"type": kind}).encode(),
                **{
                    f".apart/{k}": v
                    for k, v in _inside("solution_js.mjs", "wire.mjs", "join.py").items()
                },
            },
            mounts=mounts,
            limits=_for_node(limits),
        )
        graded = _both(graded, _graded(trusted, untrusted, box))
    return graded


def _is_module(source: bytes) -> bool:
    return any(
        line.startswith((b"export ", b"export{", b"import ", b"import{"))
        for line in source.split(b"\n")
    )


def _for_node(limits: Limits) -> Limits:
    """Node's threads and what V8 maps ahead want more room."""
    return dataclasses.replace(limits, processes=128, memory_mib=max(2048, limits.memory_mib))


def _inside(*names: str) -> dict[str, bytes]:
    folder = resources.files("selfevolve_jax.dgm.benchmarks") / "inside"
    return {name: (folder / name).read_bytes() for name in names}


def _graded(trusted: Job, untrusted: Job, box: Box) -> Graded:
    mine, theirs = _run_joined(trusted, untrusted, box)
    tests: dict[str, bool] = {}
    why: dict[str, str] = {}
    broken = ""
    decides: tuple[str, ...] = ()
    ended = False
    for line in mine.stdout.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if "test" in said:
                name = str(said["test"])
                tests[name] = said["passed"] and tests.get(name, True)
                if not said["passed"]:
                    why[name] = said["why"][:REASON_CHARS]
            broken = broken or said.get("broken", "")
            if said.get("end"):
                ended, decides = True, tuple(said.get("decides", ()))
    # Which of the two clocks runs out first is chance. What came after the solution's did not run.
    lost = [name for name in why if theirs.ended and GONE in why[name]]
    for name in lost:
        del tests[name], why[name]
    if not ended:
        told = mine.stderr.decode(errors="replace").strip()[-REASON_CHARS:]
        how = f"{LIMIT} {mine.ended}" if mine.ended else f"ended with exit code {mine.exit_code}"
        broken = f"the tests were {how}: {told}"
    elif theirs.ended and (lost or not all(tests.values())):
        broken = broken or f"the solution was {LIMIT} {theirs.ended}"
    log = (theirs.stdout + theirs.stderr).decode(errors="replace")[-4 * REASON_CHARS :]
    return Graded(
        tests,
        broken,
        why,
        decides,
        log,
        cpu_s=mine.cpu_s + theirs.cpu_s,
        wall_s=max(mine.wall_s, theirs.wall_s),
    )


def _both(a: Graded, b: Graded) -> Graded:
    return Graded(
        {**a.tests, **b.tests},
        a.broken or b.broken,
        {**a.why, **b.why},
        a.decides + b.decides,
        a.log + b.log,
        a.cpu_s + b.cpu_s,
        a.wall_s + b.wall_s,
    )


# --- two sandboxes, one socket pair -------------------------------------------------------------

# One pair at a time takes its two slots, so that no two pairs can each hold one and wait for another.
_pairing = threading.Lock()


def _run_joined(trusted: Job, untrusted: Job, box: Box) -> tuple[Outcome, Outcome]:
    """Both at once, in two slots of the box. Each comes to a door of its own and is given one end of a
    socket pair: from then on they speak without us."""
    outcomes: dict[str, Outcome] = {}
    errors: list[BaseException] = []
    joined = threading.Event()
    settled = threading.Event()

    def run(name: str, job: Job, door: socket.socket) -> None:
        try:
            outcomes[name] = box.run(job)
        except BaseException as e:
            errors.append(e)
        finally:
            settled.set()
            with contextlib.suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)  # wakes the usher where the job never came

    def usher(doors: Sequence[socket.socket]) -> None:
        if _ushered(doors):
            joined.set()
        settled.set()

    with _doors(("tests", "solution")) as (paths, doors):
        jobs = {"tests": trusted, "solution": untrusted}
        threads = [threading.Thread(target=usher, args=([*doors.values()],))]
        for name, job in jobs.items():
            args = (name, dataclasses.replace(job, socket=paths[name]), doors[name])
            threads.append(threading.Thread(target=run, args=args))
        with _pairing:
            for thread in threads:
                thread.start()
            settled.wait()
        for thread in threads:
            thread.join()
    for e in errors:
        if isinstance(e, SandboxError):
            raise Unavailable(f"the sandbox failed: {e}") from e
        raise e
    if not joined.is_set():
        told = " ".join(f"{k}: {_how(v)}" for k, v in outcomes.items())
        raise Unavailable(
            f"tests and solution never met; {told}. A grading needs two of the sandbox's slots at "
            "once: open it with two for each worker."
        )
    return outcomes["tests"], outcomes["solution"]


def _how(outcome: Outcome) -> str:
    said = outcome.stderr.decode(errors="replace").strip()[-200:]
    return f"{outcome.ended or f'exit code {outcome.exit_code}'} {said}"


@contextlib.contextmanager
def _doors(names: Sequence[str]) -> Iterator[tuple[dict[str, str], dict[str, socket.socket]]]:
    doors: dict[str, socket.socket] = {}
    with sockets.folder() as folder:
        try:
            for name in names:
                doors[name] = socket.socket(socket.AF_UNIX)
                doors[name].bind(os.path.join(folder, name))
                doors[name].listen(1)
            yield {name: os.path.join(folder, name) for name in names}, doors
        finally:
            for door in doors.values():
                door.close()


def _ushered(doors: Sequence[socket.socket]) -> bool:
    """Waits for one visitor at each door, and gives each its end. False where one never came."""
    came: list[socket.socket] = []
    ends = socket.socketpair()
    try:
        for door in doors:
            came.append(door.accept()[0])
        for visitor, end in zip(came, ends, strict=True):
            socket.send_fds(visitor, [b"."], [end.fileno()])
        return True
    except OSError:
        return False  # closing tells the other
    finally:
        for x in (*came, *ends):
            x.close()
