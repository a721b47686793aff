"""Aider's polyglot benchmark: 225 Exercism exercises in six languages, read from a path the user gives.

LANG/exercises/practice/NAME holds .docs (what is asked), .meta/config.json (which files are solution,
test and example), stubs and tests. As in DGM's paper (section 4.1) an agent has one try and never sees
the tests (show_tests gives them to it: then it is another, easier benchmark). Aider's leaderboard gives
two tries, the second with the tests' output.

What an agent hands in are the solution files alone, taken from its repository; everything else is laid
down afresh. Python and JavaScript are graded with tests and solution in two sandboxes (apart.py), the
others with a control test (compiled.py). A task is solved where the report names exactly the tests that
the reference solution passes, all passed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from selfevolve_jax.dgm import coding
from selfevolve_jax.dgm.benchmarks import apart, compiled, subset, toolchains
from selfevolve_jax.dgm.benchmarks.apart import Graded
from selfevolve_jax.dgm.benchmarks.toolchains import LANGUAGES, Toolchain
from selfevolve_jax.dgm.contract import Models, Result, Task, Tree
from selfevolve_jax.dgm.sandbox.job import Box, Limits
from selfevolve_jax.errors import UserError

PRACTICE = "exercises/practice"
# These are the benchmark's, whatever an exercise's list of solution files says.
MANIFESTS = frozenset(
    ("Cargo.toml", "Cargo.lock", "go.mod", "package.json", "CMakeLists.txt", "build.gradle")
)
SOLUTION_BYTES = 1 << 20  # of one file
KEPT_CHARS = 20_000  # of an answer
FORMAT = 1  # of what is cached of a reference; a change makes all of them anew
METHODS = dict.fromkeys(LANGUAGES, "tests and solution in one program, with a control test") | {
    "python": "tests and solution in two sandboxes",
    "javascript": "tests and solution in two sandboxes",
}


@dataclass(frozen=True)
class Exercise:
    """docs: what is asked. solution: paths of what an agent hands in; stubs: those files as they are
    given. tests: what is hidden and trusted, `named` the paths of those that hold tests. support:
    everything else an agent is given, and trusted. reference: the example, as solution files."""

    language: str
    name: str
    docs: str
    solution: tuple[str, ...]
    stubs: Tree
    tests: Tree
    named: tuple[str, ...]
    support: Tree
    reference: Tree

    @property
    def id(self) -> str:
        return f"{self.language}-{self.name}"


@dataclass(frozen=True)
class Expected:
    """What is known of a task from its reference. tests: all of the reference's, all passed; () where
    `refused` says why the task cannot be graded here. decides: see apart.python_tests."""

    tests: tuple[str, ...]
    decides: tuple[str, ...] = ()
    refused: str = ""


@dataclass
class Polyglot:
    """A Benchmark. A grading takes two of the box's slots at once (Python, JavaScript).

    cache: a folder for what references give, by content hash."""

    exercises: Mapping[str, Exercise]
    tasks: Sequence[Task]
    excluded: Mapping[str, str]
    tools: Mapping[str, Toolchain]
    cache: Path
    show_tests: bool = False
    limits: Limits = coding.LIMITS
    name: str = "polyglot"
    _known: dict[str, Expected] = field(default_factory=dict)

    def describe(self, task: Task) -> str:
        e = self.exercises[task.id]
        return problem(e, self.tools[e.language], self.show_tests)

    def evaluate(
        self, agent: Tree, task: Task, seed: int, box: Box, models: Models | None
    ) -> Result:
        e = self.exercises[task.id]
        expected = self.expected(e, box)
        if expected.refused:
            raise UserError(f"{task.id} cannot be graded here: {expected.refused}")
        tried = coding.solve(
            agent,
            self.describe(task),
            {**e.support, **e.stubs, **(e.tests if self.show_tests else {})},
            box,
            models,
            self.limits,
            purpose=f"{self.name} {task.id}",
            mounts=self.tools[e.language].mounts,
            collect=e.solution,
        )
        answer = {path: data for path, data in (tried.repo or {}).items() if path in e.solution}
        common: dict[str, Any] = dict(answer=shown(answer), log=tried.log, usage=tried.usage)
        if tried.repo is None or answer == dict(e.stubs):
            reason = f"no answer: {tried.reason or 'the solution files are as they were given'}"
            return Result(
                False, 0.0, True, reason, cpu_s=tried.cpu_s, wall_s=tried.wall_s, **common
            )
        graded = self.grade(e, answer, box, expected)
        solved, partial, reason = verdict(graded, expected, e.language, told=self.show_tests)
        return Result(
            solved,
            partial,
            False,
            reason,
            tests={name: graded.tests.get(name, False) for name in expected.tests},
            cpu_s=tried.cpu_s + graded.cpu_s,
            wall_s=tried.wall_s + graded.wall_s,
            **common,
        )

    def grade(
        self, e: Exercise, solution: Tree, box: Box, expected: Expected | None = None
    ) -> Graded:
        """expected: None while the reference itself is run. Raises Unavailable."""
        for path, data in solution.items():
            if len(data) > SOLUTION_BYTES:
                return Graded({}, f"{path} has {len(data)} bytes, of {SOLUTION_BYTES} at most")
        if e.language == "python":
            modules = [path.removesuffix(".py") for path in e.named]
            decides = expected.decides if expected else None
            trusted = {**e.support, **e.tests}
            return apart.python_tests(trusted, modules, {**solution, **e.support}, box, decides)
        if e.language == "javascript":
            trusted = {**e.support, **e.tests}
            return apart.javascript_tests(trusted, e.named, {**solution, **e.support}, box)
        trusted = {**e.support, **e.tests}
        return compiled.run_tests(trusted, e.named, solution, self.tools[e.language], box)

    def expected(self, e: Exercise, box: Box) -> Expected:
        """From memory, from the cache, or by running reference and stubs. Raises Unavailable."""
        if e.id not in self._known:
            path = self.cache / f"{_hash(e, self.tools[e.language], box)}.json"
            known = _read(path)
            if known is None:
                known = self._measured(e, box)
                if apart.LIMIT not in known.refused:  # a busy machine is no fact of the exercise
                    _write(path, known)
            self._known[e.id] = known
        return self._known[e.id]

    def _measured(self, e: Exercise, box: Box) -> Expected:
        graded = self.grade(e, {**e.stubs, **e.reference}, box)
        failed = [name for name, passed in graded.tests.items() if not passed]
        if graded.broken or failed or not graded.tests:
            told = f"{len(failed)} of {len(graded.tests)} tests fail: {', '.join(failed[:2])}"
            if not graded.tests:
                told = "its test files hold no tests"
            last = graded.log.strip().split("\n")[-1][:200] if graded.broken else ""
            why = f"{graded.broken} {last}".strip() or told
            return Expected((), refused=f"the reference does not pass here: {why}")
        expected = Expected(tuple(sorted(graded.tests)), graded.decides)
        stubs = self.grade(e, e.stubs, box, expected)
        if verdict(stubs, expected, e.language)[0]:
            return Expected((), refused="the stubs that are given pass already")
        return expected

    def chosen(self, train: int, held_out: int, seed: int, box: Box) -> Polyglot:
        """The same with the tasks of a subset (see subset.choose). A task whose reference does not pass
        here is named in `excluded`, and the next one takes its place. The first time on a machine this
        compiles and runs the references. Raises UserError, Unavailable."""
        refused: dict[str, str] = {}

        def usable(task: Task) -> bool:
            expected = self.expected(self.exercises[task.id], box)
            if expected.refused:
                refused[task.id] = expected.refused
            return not expected.refused

        tasks = subset.choose(self.tasks, train, held_out, seed, usable)
        return replace(self, tasks=tasks, excluded={**self.excluded, **refused})


def open_polyglot(
    path: str,
    cache: Path,
    languages: Sequence[str] = LANGUAGES,
    show_tests: bool = False,
    java_jars: str | None = None,
    limits: Limits = coding.LIMITS,
) -> Polyglot:
    """All exercises under path whose language has a toolchain here, each a task of split "train" (see
    subset.py). Raises UserError."""
    root = Path(path).expanduser()
    for language in languages:
        if language not in LANGUAGES:
            raise UserError(f"language {language!r} is none of {', '.join(LANGUAGES)}.")
    present = [x for x in languages if (root / x / PRACTICE).is_dir()]
    if not present:
        raise UserError(
            f"path={path} has no LANGUAGE/{PRACTICE} for {', '.join(languages)}. "
            "Fix: give the path of a clone of Aider-AI/polyglot-benchmark."
        )
    excluded: dict[str, str] = {x: f"not in {path}" for x in languages if x not in present}
    tools: dict[str, Toolchain] = {}
    exercises: dict[str, Exercise] = {}
    for language in present:
        toolchain = toolchains.find(language, java_jars)
        if isinstance(toolchain, str):
            excluded[language] = toolchain
            continue
        tools[language] = toolchain
        for folder in sorted((root / language / PRACTICE).iterdir()):
            if folder.is_dir():
                e = read_exercise(language, folder)
                exercises[e.id] = e
    tasks = [Task(e.id, "train", e.language) for e in exercises.values()]
    return Polyglot(exercises, tasks, excluded, tools, cache, show_tests, limits)


def read_exercise(language: str, folder: Path) -> Exercise:
    """Raises UserError for a folder that is not one."""
    config = folder / ".meta" / "config.json"
    try:
        files = json.loads(config.read_text())["files"]
        solution, tests, examples = files["solution"], files["test"], files["example"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(
            f"{config} does not say which files are solution, test and example ({e!r}). "
            "Fix: restore the exercise, or remove its folder."
        ) from e
    tree: dict[str, bytes] = {}
    for file in sorted(folder.rglob("*")):
        relative = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and not hidden and not relative.parts[0].startswith("gradle"):
            tree[relative.as_posix()] = file.read_bytes()
    solution = tuple(path for path in solution if path.split("/")[-1] not in MANIFESTS)
    hidden = {path for path in tree if path in tests or _is_test(language, path)}
    missing = [p for p in (*solution, *tests) if p not in tree]
    missing += [p for p in examples if not (folder / p).is_file()]
    if missing or not tests or not solution:
        raise UserError(f"{config} names {missing or 'no files'}, which are not there.")
    return Exercise(
        language,
        folder.name,
        _docs(folder),
        solution,
        {path: tree[path] for path in solution},
        {path: tree[path] for path in hidden},
        tuple(path for path in tests if not _is_helper(language, path)),
        {path: data for path, data in tree.items() if path not in solution and path not in hidden},
        _reference(language, folder, examples, solution),
    )


def _is_test(language: str, path: str) -> bool:
    name = path.split("/")[-1]
    return {
        "cpp": path.startswith("test/") or name.endswith("_test.cpp"),
        "go": name.endswith("_test.go"),
        "java": path.startswith("src/test/"),
        "javascript": name.endswith((".spec.js", ".test.js")),
        "python": name.endswith("_test.py"),
        "rust": path.startswith("tests/"),
    }[language]


def _is_helper(language: str, path: str) -> bool:
    """Among the test files, but without tests of its own."""
    ends = {"python": "_test.py", "java": "Test.java"}.get(language, "")
    return not path.endswith(ends)


def _docs(folder: Path) -> str:
    names = ("introduction.md", "instructions.md", "instructions.append.md")
    parts = [folder / ".docs" / name for name in names]
    return "\n\n".join(p.read_text().strip() for p in parts if p.is_file())


def _reference(
    language: str, folder: Path, examples: Sequence[str], solution: Sequence[str]
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in examples:
        data = (folder / path).read_bytes()
        if language == "java":
            found[f"src/main/java/{path.split('/')[-1]}"] = data
        elif language == "cpp":
            same = [s for s in solution if s.split(".")[-1] == path.split(".")[-1]]
            found[same[0] if same else path.split("/")[-1]] = data
        else:
            found[solution[0]] = data
    return found


def problem(e: Exercise, tools: Toolchain, show_tests: bool) -> str:
    """What the agent is told."""
    programs = ", ".join(tools.programs.values())
    return "\n\n".join(
        (
            e.docs,
            f"The repository holds the beginnings of a solution in {e.language}. Write the solution "
            f"into {', '.join(e.solution)}: these files alone are handed in, and nothing else you "
            "change counts. Keep the names of functions, classes and files: tests "
            + (
                "that you find beside it call them."
                if show_tests
                else "that you do not see call them."
            )
            + " Use the standard library only; there is no network."
            + (f" To try it out there is {programs}." if programs else ""),
        )
    )


def verdict(
    graded: Graded, expected: Expected, language: str, told: bool = False
) -> tuple[bool, float, str]:
    """(solved, share of the expected tests that pass, why it is not solved). told: the reason may say
    what failed tests expected, which gives private tests away."""
    passed = [name for name in expected.tests if graded.tests.get(name)]
    partial = len(passed) / len(expected.tests)
    unknown = sorted(set(graded.tests) - set(expected.tests))
    failed = [name for name in expected.tests if not graded.tests.get(name)]
    if not (graded.broken or unknown or failed):
        return True, 1.0, ""
    reasons = [graded.broken] if graded.broken else []
    if unknown:
        reasons.append(f"the report names tests that are not there: {', '.join(unknown[:3])}")
    if failed:
        first = f"{len(failed)} of {len(expected.tests)} tests fail: {', '.join(failed[:5])}"
        reasons.append(
            first + (f" ({graded.why[failed[0]]})" if told and failed[0] in graded.why else "")
        )
    return False, partial if failed else 0.0, f"{'; '.join(reasons)} [{METHODS[language]}]"


def shown(answer: Tree) -> str:
    parts = [
        f"--- {path}\n{data.decode(errors='replace')}" for path, data in sorted(answer.items())
    ]
    return coding.cut("\n".join(parts), KEPT_CHARS)


# --- what references gave, kept -----------------------------------------------------------------


def _hash(e: Exercise, tools: Toolchain, box: Box) -> str:
    digest = hashlib.sha256(f"{FORMAT} {e.id} {tools.version} {box.name}".encode())
    for tree in (e.stubs, e.tests, e.support, e.reference):
        for path in sorted(tree):
            digest.update(f"\0{path}\0{len(tree[path])}\0".encode() + tree[path])
    package = resources.files("selfevolve_jax.dgm.benchmarks")
    graders = sorted((package / "inside").iterdir(), key=lambda f: f.name)
    for file in (package / "apart.py", package / "compiled.py", *graders):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _read(path: Path) -> Expected | None:
    try:
        said = json.loads(path.read_text())
        return Expected(tuple(said["tests"]), tuple(said["decides"]), said["refused"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, known: Expected) -> None:
    """Whole or not at all; a cache that cannot be written is done without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(known.__dict__, file)
        os.replace(file.name, path)
    except OSError:
        pass
