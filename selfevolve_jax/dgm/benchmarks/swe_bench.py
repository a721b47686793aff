"""SWE-bench: real issues of real repositories, by the `swebench` package (5.0 and later, imported
late: it takes seconds).

A task is an instance of a data set (a json, jsonl or parquet file, or a hub name). The agent works on
the repository at base_commit, read from a local bare mirror; its answer is a patch, made in a second
sandbox. It is graded either in a sandbox of ours, where an environment was prepared for the instance,
or by swebench's own harness where a Docker engine answers; else the instance is excluded.

The verdict is swebench's get_eval_report, which reads the log of the test run. In that run patch and
tests are one process, so a patch can in the end forge a log; what is done: edits to files that steer
the runner (STEERING) and to the files of the test patch are left out of the patch, and swebench
compares the log with the runner's exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevolve_jax.dgm import coding
from selfevolve_jax.dgm.contract import Models, Result, Task, Tree, Unavailable
from selfevolve_jax.dgm.sandbox import patch
from selfevolve_jax.dgm.sandbox.job import Box, Job, Limits, SandboxError
from selfevolve_jax.errors import UserError

MODEL = "selfevolve"  # model_name_or_path of the predictions
CONDA = (
    "/opt/miniconda3"  # where swebench's images have the environment, and its scripts look for it
)
TESTBED = "/work/testbed"  # what is /testbed in an image; only /work can be written to here
GRADE_LIMITS = Limits(
    wall_s=1800.0, cpu_s=1800.0, memory_mib=4096, processes=512, work_mib=2048, work_files=200_000,
    output_bytes=8 << 20,
)  # fmt: skip
REPOSITORY = dict(
    memory_mib=2048,
    work_mib=2048,
    work_files=200_000,
    collected_bytes=1 << 30,
    collected_files=100_000,
)
STEERING = frozenset(
    (
        *("conftest.py", "pytest.ini", "tox.ini", "setup.cfg", ".coveragerc", "noxfile.py"),
        *("sitecustomize.py", "usercustomize.py", "pytest.py", "unittest.py"),
    )
)
KEPT_CHARS = 50_000

Instance = Mapping[str, Any]


@dataclass
class SweBench:
    """A Benchmark. mirrors: instance -> its bare repository; environments: instance -> its prepared
    environment, None where Docker grades."""

    instances: Mapping[str, Instance]
    tasks: Sequence[Task]
    excluded: Mapping[str, str]
    mirrors: Mapping[str, Path]
    environments: Mapping[str, Path | None]
    limits: Limits = coding.LIMITS
    name: str = "swe_bench"

    def describe(self, task: Task) -> str:
        i = self.instances[task.id]
        return (
            f"The repository is {i['repo']}. Resolve the following issue by changing its source files. "
            "Tests that you do not see check it; edits to tests and to their configuration do not "
            f"count.\n\n{i['problem_statement']}"
        )

    def evaluate(
        self, agent: Tree, task: Task, seed: int, box: Box, models: Models | None
    ) -> Result:
        i = self.instances[task.id]
        before = tree_at(self.mirrors[task.id], i["base_commit"])
        limits = dataclasses.replace(self.limits, **REPOSITORY)
        purpose = f"{self.name} {task.id}"
        tried = coding.solve(
            agent, self.describe(task), before, box, models, limits, purpose=purpose
        )
        common: dict[str, Any] = dict(log=tried.log, usage=tried.usage)
        try:
            diff, left_out = patch_of(before, tried.repo, i, box)
            why = tried.reason or "nothing of the repository's source was changed"
        except patch.PatchError as e:
            diff, left_out, why = "", (), f"no patch can be made: {e}"
        note = f"; edits to {', '.join(left_out[:5])} were left out" if left_out else ""
        if not diff:
            reason = f"empty patch: {why}{note}"
            return Result(
                False, 0.0, True, reason, cpu_s=tried.cpu_s, wall_s=tried.wall_s, **common
            )
        report, cpu_s, wall_s = self.grade(task, diff, box)
        tests = tests_of(report)
        solved = bool(report.get("resolved"))
        return Result(
            solved,
            1.0 if solved else _share(report),
            False,
            "" if solved else f"{_why(report)}{note}",
            answer=coding.cut(diff, KEPT_CHARS),
            tests=tests,
            cpu_s=tried.cpu_s + cpu_s,
            wall_s=tried.wall_s + wall_s,
            **common,
        )

    def grade(self, task: Task, diff: str, box: Box) -> tuple[dict[str, Any], float, float]:
        """(swebench's report of the instance, CPU seconds, wall seconds). Raises Unavailable."""
        i = self.instances[task.id]
        environment = self.environments[task.id]
        if environment is None:
            return _by_docker(i, diff), 0.0, 0.0
        return _in_sandbox(i, diff, self.mirrors[task.id], environment, box)


def prediction(instance_id: str, diff: str) -> dict[str, str]:
    """In swebench's form."""
    return {"instance_id": instance_id, "model_name_or_path": MODEL, "model_patch": diff}


def patch_of(
    before: Tree, after: Tree | None, instance: Instance, box: Box
) -> tuple[str, tuple[str, ...]]:
    """(the patch, the paths whose changes were left out of it). Raises PatchError, Unavailable."""
    if after is None:
        return "", ()
    tests = {line[6:] for line in instance["test_patch"].split("\n") if line.startswith("+++ b/")}
    changed = [p for p in sorted({*before, *after}) if before.get(p) != after.get(p)]
    left_out = tuple(p for p in changed if p in tests or p.split("/")[-1] in STEERING)
    kept = dict(after)
    for path in left_out:
        kept.pop(path, None)
        if path in before:
            kept[path] = before[path]
    try:
        return patch.diff(before, kept, box), left_out
    except SandboxError as e:
        raise Unavailable(f"the sandbox failed: {e}") from e


def tree_at(mirror: Path, commit: str) -> dict[str, bytes]:
    """The files of a commit of a bare repository, without links. Raises UserError."""
    git = ("git", "--git-dir", str(mirror), "-c", "safe.directory=*", "archive", commit)
    ran = subprocess.run(git, capture_output=True, cwd="/")
    if ran.returncode != 0:
        said = ran.stderr.decode(errors="replace").strip()[-300:]
        raise UserError(f"{mirror} does not give commit {commit}: {said}")
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(ran.stdout)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                found[member.name] = file.read()
    return found


# --- grading ------------------------------------------------------------------------------------

SCRIPT = r"""
export GIT_CONFIG_NOSYSTEM=1
git clone -q --shared /opt/mirror.git testbed && git -C testbed checkout -q "$1" || exit 90
git -C testbed apply --whitespace=nowarn /work/model.patch ||
  { echo '>>>>> Patch Apply Failed'; exit 0; }
exec bash /work/eval.sh
"""


def _in_sandbox(
    instance: Instance, diff: str, mirror: Path, environment: Path, box: Box
) -> tuple[dict[str, Any], float, float]:
    grading, utils = _swebench()
    spec = utils.make_test_spec(dict(instance))
    script = spec.eval_script.replace("/testbed", TESTBED)
    job = Job(
        argv=("bash", "-c", f"exec 2>&1\n{SCRIPT}", "bash", instance["base_commit"]),
        files={
            "model.patch": diff.encode(),
            "eval.sh": script.encode(),
            ".gitconfig": b"[safe]\n\tdirectory = *\n",  # the mirror is another user's
        },
        mounts={"/opt/mirror.git": str(mirror.resolve()), CONDA: str(environment.resolve())},
        limits=GRADE_LIMITS,
    )
    try:
        outcome = box.run(job)
    except SandboxError as e:
        raise Unavailable(f"the sandbox failed: {e}") from e
    if outcome.exit_code == 90:
        said = outcome.stdout.decode(errors="replace")[-300:]
        raise Unavailable(f"{mirror} cannot be checked out at {instance['base_commit']}: {said}")
    log = outcome.stdout.decode(errors="replace")
    if outcome.ended:
        log += f"\n>>>>> Tests Timed Out ({outcome.ended})"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(log)
        file.flush()
        said = prediction(instance["instance_id"], diff)
        report = grading.get_eval_report(spec, said, file.name, True)
    found = dict(report[instance["instance_id"]]) | {"log": log.strip()[-500:]}
    if outcome.ended:
        found["resolved"], found["ended"] = False, outcome.ended
    return found, outcome.cpu_s, outcome.wall_s


def _by_docker(instance: Instance, diff: str) -> dict[str, Any]:
    name = instance["instance_id"]
    with tempfile.TemporaryDirectory(prefix="selfevolve-swebench-") as folder:
        place = Path(folder)
        (place / "instances.json").write_text(json.dumps([dict(instance)], default=str))
        (place / "predictions.json").write_text(json.dumps([prediction(name, diff)]))
        argv = [sys.executable, "-m", "swebench.harness.run_evaluation", "--run_id", "one"]
        argv += ["--dataset_name", "instances.json", "--predictions_path", "predictions.json"]
        ran = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
        reports = list(place.glob(f"logs/**/{name}/report.json"))
        if not reports:
            raise Unavailable(
                f"swebench's harness left no report of {name}: {ran.stderr.strip()[-300:]}"
            )
        return json.loads(reports[0].read_text())[name]


def tests_of(report: Mapping[str, Any]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for kind in ("FAIL_TO_PASS", "PASS_TO_PASS"):
        for how, names in report.get("tests_status", {}).get(kind, {}).items():
            found.update(dict.fromkeys(names, how == "success"))
    return found


def _share(report: Mapping[str, Any]) -> float:
    """Of the tests that the issue is about, those that pass; 0 where one breaks that passed before."""
    status = report.get("tests_status", {})
    wanted, kept = status.get("FAIL_TO_PASS", {}), status.get("PASS_TO_PASS", {})
    count = sum(len(names) for names in wanted.values())
    return 0.0 if not count or kept.get("failure") else len(wanted.get("success", ())) / count


def _why(report: Mapping[str, Any]) -> str:
    if report.get("ended"):
        return f"the tests were ended by their limit of {report['ended']}"
    if not report.get("patch_successfully_applied"):
        reason = report.get("infra_failure_reason")
        said = f"{reason or ''} {report.get('log', '')}".strip()
        return f"no test results: the patch does not apply, or the tests did not start: {said}"
    failed = [name for name, passed in tests_of(report).items() if not passed]
    return f"{len(failed)} of {len(tests_of(report))} tests fail: {', '.join(failed[:5])}"


# --- opening ------------------------------------------------------------------------------------


def open_swe_bench(
    path: str,
    repositories: str | None,
    environments: str | None,
    data_split: str = "test",
    limits: Limits = coding.LIMITS,
) -> SweBench:
    """Every instance that can be graded here a task of split "train" (see subset.py); the others in
    `excluded`.

    repositories: a folder of bare mirrors, OWNER__NAME.git. environments: a folder with a prepared
    environment for each INSTANCE_ID, or for OWNER__NAME__VERSION: what is /opt/miniconda3 in swebench's
    image of it (docker cp). Raises UserError."""
    if repositories is None or not Path(repositories).is_dir():
        raise UserError(
            f"repositories={repositories} is no folder. Fix: give one with a bare mirror of each "
            "repository, as by git clone --mirror https://github.com/OWNER/NAME OWNER__NAME.git."
        )
    instances = {i["instance_id"]: i for i in read_instances(path, data_split)}
    docker = _docker_answers()
    excluded: dict[str, str] = {}
    mirrors: dict[str, Path] = {}
    prepared: dict[str, Path | None] = {}
    for name, i in instances.items():
        repo = i["repo"].replace("/", "__")
        mirror = Path(repositories) / f"{repo}.git"
        places = [name, f"{repo}__{i['version']}"] if environments else []
        found = [p for p in (Path(str(environments), x) for x in places) if p.is_dir()]
        if not mirror.is_dir():
            excluded[name] = f"no mirror {mirror}"
        elif "eval_script" not in i:
            excluded[name] = "the data set is of before swebench 5: it has no eval_script"
        elif not found and not docker:
            excluded[name] = (
                f"no environment {' or '.join(places) or '(environments is not set)'}, and no Docker "
                "engine answers"
            )
        else:
            mirrors[name], prepared[name] = mirror, found[0] if found else None
    tasks = [Task(name, "train", instances[name]["repo"].replace("/", "__")) for name in mirrors]
    if not tasks:
        some = next(iter(excluded.items()), ("", "it is empty"))
        raise UserError(
            f"no instance of {path} can be graded here; {some[0]}: {some[1]}. Fix: prepare an "
            "environment for each instance, or start Docker."
        )
    return SweBench(instances, tasks, excluded, mirrors, prepared, limits)


def read_instances(path: str, data_split: str) -> list[Instance]:
    """From a json or jsonl file by ourselves, from anything else by swebench. Raises UserError."""
    if path.endswith((".json", ".jsonl", ".parquet")) and not Path(path).is_file():
        raise UserError(f"path={path} is not there. Fix: give SWE-bench's data file or a hub name.")
    try:
        if path.endswith(".json"):
            found = json.loads(Path(path).read_text())
        elif path.endswith(".jsonl"):
            lines = Path(path).read_text().splitlines()
            found = [json.loads(line) for line in lines if line.strip()]
        else:
            found = _swebench()[1].load_swebench_dataset(path, data_split)
    except (OSError, ValueError) as e:
        raise UserError(f"path={path} cannot be read as SWE-bench's data: {e}") from e
    needed = ("instance_id", "repo", "base_commit", "problem_statement", "test_patch", "version")
    for i in found:
        missing = [key for key in needed if key not in i]
        if missing:
            raise UserError(f"path={path}: an instance lacks {', '.join(missing)}.")
    return found


def _swebench() -> tuple[Any, Any]:
    try:
        from swebench.harness import grading, utils  # type: ignore[import-not-found]
    except ImportError as e:
        raise UserError(
            "name=swe_bench needs the package swebench 5. Fix: uv sync --extra swebench"
        ) from e
    if not hasattr(utils, "make_test_spec"):
        raise UserError("this swebench is older than 5.0. Fix: uv sync --extra swebench")
    return grading, utils


def _docker_answers() -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        if shutil.which("docker"):
            return (
                subprocess.run(("docker", "info"), capture_output=True, timeout=10).returncode == 0
            )
    return False
