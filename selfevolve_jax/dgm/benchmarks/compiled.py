"""Tests of compiled languages, where solution and tests are one program.

There a solution can, in the end, do whatever the runner can. What is checked: the report is the test
framework's own machine-readable one; it names each expected test exactly once; and controls, tests with
a random name that must fail, one at the end of each trusted test file, ran last and did fail. So a
solution is not solved by ending the program early, by printing what it knows of the report, or by
redefining what the tests assert with. It is not proof against one that reads the names of tests from
its own program's memory; apart.py is, for Python and JavaScript."""

from __future__ import annotations

import json
import re
import secrets
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from selfevolve_jax.dgm.benchmarks.apart import LIMIT, REASON_CHARS, Graded
from selfevolve_jax.dgm.benchmarks.toolchains import Toolchain
from selfevolve_jax.dgm.contract import Unavailable
from selfevolve_jax.dgm.sandbox.job import Box, Job, Limits, Outcome, SandboxError

LIMITS = Limits(
    wall_s=180.0, cpu_s=180.0, memory_mib=3072, processes=256, work_mib=1024, file_mib=256
)
REPORT = "report.out"

Tests = list[tuple[str, bool]]  # as reported: a name may come twice, and then nothing is believed


def run_tests(
    tests: Mapping[str, bytes],
    named: Sequence[str],
    solution: Mapping[str, bytes],
    tools: Toolchain,
    box: Box,
    limits: Limits = LIMITS,
) -> Graded:
    """Compiles and runs the trusted files `tests`, of which `named` hold tests, laid over the solution.
    Raises Unavailable."""
    control = f"zzz_control_{secrets.token_hex(8)}"  # last of its file, in order of names too
    job, read = LANGUAGES[tools.language](tests, named, solution, tools, control)
    try:
        outcome = box.run(Job(**job, mounts=tools.mounts, limits=limits, collect=(REPORT,)))
    except SandboxError as e:
        raise Unavailable(f"the sandbox failed: {e}") from e
    one_program = tools.language in ("go", "java")
    return _graded(outcome, read, control, 1 if one_program else len(named))


def _graded(
    outcome: Outcome, read: Callable[[Outcome], Tests], control: str, controls: int
) -> Graded:
    log = (outcome.stdout + outcome.stderr).decode(errors="replace")
    found: dict[str, bool] = {}
    broken = f"{LIMIT} {outcome.ended}" if outcome.ended else ""
    try:
        reported = read(outcome) if outcome.stdout or outcome.files else []
    except (ValueError, KeyError, ElementTree.ParseError) as e:
        reported, broken = [], broken or f"no report that can be read: {type(e).__name__}"
    failed = [passed for name, passed in reported if control in name]
    for name, passed in reported:
        if control in name:
            continue
        if name in found:
            broken = broken or f"the report names {name} twice"
        found[name] = passed and found.get(name, True)
    if not reported:
        broken = broken or "it does not compile, or its tests do not start"
    elif failed != [False] * controls:
        broken = (
            broken or "the control, a test that must fail, did not: the report is not the tests'"
        )
    return Graded(
        {} if broken else found,
        broken,
        log=log[-4 * REASON_CHARS :],
        cpu_s=outcome.cpu_s,
        wall_s=outcome.wall_s,
    )


def _appended(tests: Mapping[str, bytes], named: Sequence[str], text: str) -> dict[str, bytes]:
    """The trusted files, with a control at the end of each that holds tests."""
    return {**tests, **{path: tests[path] + b"\n" + text.encode() for path in named}}


def _shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


# --- C++ with the Catch header that each exercise brings ----------------------------------------


def _cpp(tests, named, solution, tools, control):
    text = f'TEST_CASE("{control}") {{ int one = 1; REQUIRE(one == 2); }}'
    files = {**solution, **_appended(tests, named, text)}
    flags = "-std=c++17 -Wall -Wextra -Wpedantic -Werror -DEXERCISM_RUN_ALL_TESTS -I. -pthread"
    units = [f for f in files if f.endswith(".cpp") and "/" not in f]
    main = next(f for f in tests if f.endswith("tests-main.cpp"))
    gpp = tools.programs["g++"]
    script = (
        f"{gpp} -std=c++17 -I. -c {main} -o main.o & "
        f"{gpp} {flags} -c {' '.join(units)} || exit 1; wait; "
        f"{gpp} -pthread *.o -o tests || exit 1; "
        f"rm -f {REPORT}; ./tests --reporter xml --out {REPORT}"
    )

    def read(outcome: Outcome) -> Tests:
        root = ElementTree.fromstring(outcome.files[REPORT])
        found: Tests = []
        for case in root.iter("TestCase"):
            result = case.find("OverallResult")
            if result is None:
                raise ValueError("a test without a result")
            found.append((case.attrib["name"], result.attrib["success"] == "true"))
        return found

    return {"argv": _shell(script), "files": files}, read


# --- Go -----------------------------------------------------------------------------------------


def _go(tests, named, solution, tools, control):
    package = re.search(rb"^package\s+(\w+)", tests[named[0]], re.M)
    name = package.group(1).decode() if package else "main"
    text = f'package {name}\nimport "testing"\nfunc Test_{control}(t *testing.T) {{ t.Fail() }}\n'
    files = {**solution, **tests, f"{control}_test.go": text.encode()}
    argv = (tools.programs["go"], "test", "-json", "-count=1", "-vet=off", ".")
    env = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOTELEMETRY": "off"}
    env |= {"GOCACHE": "/work/.cache", "GOPATH": "/work/.go", "GOMAXPROCS": "2"}

    def read(outcome: Outcome) -> Tests:
        events = _json_lines(outcome.stdout)
        ended = {"pass": True, "fail": False, "skip": True}
        return [
            (e["Test"], ended[e["Action"]])
            for e in events
            if e.get("Action") in ended and "Test" in e
        ]

    return {"argv": argv, "files": files, "env": env}, read


# --- Rust ---------------------------------------------------------------------------------------


def _rust(tests, named, solution, tools, control):
    text = f"#[test]\nfn {control}() {{ assert_eq!(1, 2); }}\n"
    files = {**solution, **_appended(tests, named, text)}
    targets = [x for path in named for x in ("--test", path.split("/")[-1].removesuffix(".rs"))]
    cargo = tools.programs["cargo"]
    folder = cargo.rsplit("/", 1)[0]
    path = f"PATH={folder}:/usr/local/bin:/usr/bin:/bin"
    argv = (
        "env",
        path,
        cargo,
        "test",
        "--offline",
        "--no-fail-fast",
        *targets,
        "--",
        "--include-ignored",
    )
    argv += ("-Z", "unstable-options", "--format", "json", "--test-threads=1")
    env = {"CARGO_HOME": "/work/.cargo", "CARGO_BUILD_JOBS": "2", "CARGO_INCREMENTAL": "0"}
    env |= {"RUSTC_BOOTSTRAP": "1"}

    def read(outcome: Outcome) -> Tests:
        events = _json_lines(outcome.stdout)
        ended = {"ok": True, "failed": False}
        return [
            (e["name"], ended[e["event"]])
            for e in events
            if e.get("type") == "test" and e.get("event") in ended
        ]

    return {"argv": argv, "files": files, "env": env}, read


# --- Java with JUnit 5 --------------------------------------------------------------------------


def _java(tests, named, solution, tools, control):
    runner = (
        resources.files("selfevolve_jax.dgm.benchmarks") / "inside" / "Tests.java"
    ).read_bytes()
    text = f"""import org.junit.jupiter.api.Test;
import static org.junit.jupiter.api.Assertions.assertEquals;
class {control} {{ @Test void {control}() {{ assertEquals(1, 2); }} }}"""
    files = {**solution, **tests, f"{control}.java": text.encode(), "runner/Tests.java": runner}
    # Exercism's later tests wait for the pupil to get there.
    for path in named:
        files[path] = re.sub(rb"@Disabled(\([^)]*\))?", b"", files[path])
    sources = [f for f in files if f.endswith(".java") and f != "runner/Tests.java"]
    classes = [path.split("/")[-1].removesuffix(".java") for path in named]
    javac, java = tools.programs["javac"], tools.programs["java"]
    small = "-Xmx1g -Xss8m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
    script = (
        f"{javac} -J-Xmx1g -cp '/opt/jars/*' -d out {' '.join(sources)} || exit 1; "
        f"{javac} -J-Xmx1g -cp '/opt/jars/*' -d runner runner/Tests.java || exit 1; rm -f {REPORT}; "
        f"{java} {small} -cp 'runner:out:/opt/jars/*' Tests {REPORT} {' '.join([*classes, control])}"
    )

    def read(outcome: Outcome) -> Tests:
        return [(e["test"], e["passed"]) for e in _json_lines(outcome.files[REPORT])]

    return {"argv": _shell(script), "files": files}, read


def _json_lines(text: bytes) -> list[dict]:
    found = []
    for line in text.split(b"\n"):
        if line.startswith(b"{"):
            said = json.loads(line)
            if isinstance(said, dict):
                found.append(said)
    return found


LANGUAGES = {"cpp": _cpp, "go": _go, "java": _java, "rust": _rust}
