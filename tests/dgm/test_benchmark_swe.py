"""SWE-bench on one toy instance: a repository, a mirror of it, an issue, a test patch. What swebench
itself does is exercised where it is installed (uv sync --extra swebench); the rest everywhere."""

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from selfevolve_jax.dgm.benchmarks import swe_bench
from selfevolve_jax.dgm.first_agent import ENTRY_POINT
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.errors import UserError

SOURCE = "def mean(numbers):\n    return sum(numbers) / len(numbers)\n"
FIXED = "def mean(numbers):\n    return sum(numbers) / len(numbers) if numbers else 0.0\n"
OLD_TEST = "from stats import mean\n\n\ndef test_mean():\n    assert mean([1, 3]) == 2\n"
NEW_TEST = "\n\ndef test_empty():\n    assert mean([]) == 0.0\n"
TEST_PATCH = """diff --git a/test_stats.py b/test_stats.py
--- a/test_stats.py
+++ b/test_stats.py
@@ -3,3 +3,7 @@
 
 def test_mean():
     assert mean([1, 3]) == 2
+
+
+def test_empty():
+    assert mean([]) == 0.0
"""


def git(folder, *args):
    quiet = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    ran = subprocess.run(
        ("git", *quiet, *args), cwd=folder, check=True, capture_output=True, text=True
    )
    return ran.stdout.strip()


@pytest.fixture
def toy(tmp_path):
    """(data file, folder of mirrors, folder of environments)."""
    repo = tmp_path / "repo"
    repo.mkdir()
    for name, text in {"stats.py": SOURCE, "test_stats.py": OLD_TEST, "README": "toy"}.items():
        (repo / name).write_text(text)
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "all")
    base = git(repo, "rev-parse", "HEAD")
    mirrors = tmp_path / "mirrors"
    mirrors.mkdir()
    git(tmp_path, "clone", "-q", "--bare", "repo", "mirrors/toy__stats.git")
    environment = tmp_path / "environments" / "toy__stats-1"
    environment.mkdir(parents=True)
    (environment / "packages").symlink_to(".")
    script = f"""#!/bin/bash
set -uxo pipefail
cd /testbed
git checkout {base} test_stats.py
git apply -v - <<'EOF_1'
{TEST_PATCH}EOF_1
: '>>>>> Start Test Output'
PYTHONPATH=/opt/miniconda3/site python3 -B -m pytest -rA -p no:cacheprovider test_stats.py
: '>>>>> End Test Output'
git checkout {base} test_stats.py
"""
    instance = {
        **dict(instance_id="toy__stats-1", repo="toy/stats", version="1", base_commit=base),
        **dict(problem_statement="mean([]) should be 0.0", test_patch=TEST_PATCH, patch=""),
        **dict(image="none", log_parser="parse_log_pytest", eval_type="pass_and_fail"),
        **dict(FAIL_TO_PASS='["test_stats.py::test_empty"]'),
        **dict(PASS_TO_PASS='["test_stats.py::test_mean"]', eval_script=script),
    }
    data = tmp_path / "data.jsonl"
    other = {**instance, "instance_id": "toy__stats-2"}
    data.write_text("".join(json.dumps(i) + "\n" for i in (instance, other)))
    return data, mirrors, tmp_path / "environments"


@pytest.fixture(scope="module")
def box():
    box = open_box(workers=2)
    yield box
    box.close()


def agent(**files):
    return {
        ENTRY_POINT: "import sys, pathlib\n"
        "repo = pathlib.Path(sys.argv[sys.argv.index('--repo') + 1])\n"
        f"for name, text in {files!r}.items(): (repo / name).write_text(text)\n".encode()
    }


def test_what_cannot_be_graded_here_is_excluded_with_its_reason(toy, monkeypatch):
    monkeypatch.setattr(swe_bench, "_docker_answers", lambda: False)
    data, mirrors, environments = map(str, toy)
    found = swe_bench.open_swe_bench(data, mirrors, environments)
    assert [t.id for t in found.tasks] == ["toy__stats-1"]
    assert "no environment toy__stats-2 or toy__stats__1" in found.excluded["toy__stats-2"]
    with pytest.raises(UserError, match="no instance of"):
        swe_bench.open_swe_bench(data, mirrors, None)
    with pytest.raises(UserError, match="repositories=None"):
        swe_bench.open_swe_bench(data, None, environments)
    with pytest.raises(UserError, match=r"nowhere.json is not there"):
        swe_bench.open_swe_bench("nowhere.json", mirrors, environments)
    told = found.describe(found.tasks[0])
    assert "should be 0.0" in told and "test_empty" not in told


@pytest.mark.sandbox
def test_a_patch_holds_no_edit_that_steers_the_tests(toy, box):
    found = swe_bench.open_swe_bench(*map(str, toy))
    instance = found.instances["toy__stats-1"]
    before = swe_bench.tree_at(found.mirrors["toy__stats-1"], instance["base_commit"])
    assert set(before) == {"stats.py", "test_stats.py", "README"}
    after = {
        **before,
        "stats.py": FIXED.encode(),
        "conftest.py": b"print('PASSED test_stats.py::test_empty')",
        "test_stats.py": b"",
        "sub/pytest.ini": b"[pytest]",
    }
    diff, left_out = swe_bench.patch_of(before, after, instance, box)
    assert left_out == ("conftest.py", "sub/pytest.ini", "test_stats.py")
    assert diff.count("diff --git") == 1 and "if numbers else 0.0" in diff
    said = swe_bench.prediction("toy__stats-1", diff)
    assert set(said) == {"instance_id", "model_name_or_path", "model_patch"}


@pytest.mark.sandbox
def test_an_empty_patch_is_told_apart(toy, box):
    found = swe_bench.open_swe_bench(*map(str, toy))
    cheat = agent(**{"conftest.py": "import os; os._exit(0)", "test_stats.py": ""})
    for idle in (agent(), cheat):
        result = found.evaluate(idle, found.tasks[0], 0, box, None)
        assert result.empty and not result.solved and "empty patch" in result.reason, result


@pytest.mark.sandbox
def test_the_toy_instance_is_graded_by_swebench(toy, box):
    pytest.importorskip("swebench")
    data, mirrors, environments = toy
    # The environment is a folder with pytest, seen where swebench's images have theirs.
    site = environments / "toy__stats-1"
    (site / "packages").unlink()
    site.rmdir()
    site.mkdir()
    source = sysconfig.get_path("purelib")
    (site / "site").mkdir()
    for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py.py"):
        for part in (name, f"{name}-*.dist-info"):
            for found in Path(source).glob(part):
                subprocess.run(("cp", "-r", found, site / "site"), check=True)
    found = swe_bench.open_swe_bench(str(data), str(mirrors), str(environments))
    task = found.tasks[0]
    solved = found.evaluate(agent(**{"stats.py": FIXED}), task, 0, box, None)
    assert solved.solved and solved.reason == "", solved
    assert solved.tests == {"test_stats.py::test_empty": True, "test_stats.py::test_mean": True}
    wrong = found.evaluate(agent(**{"stats.py": SOURCE + "# nothing\n"}), task, 0, box, None)
    assert not wrong.solved and not wrong.empty and wrong.partial == 0
    assert "1 of 2 tests fail: test_stats.py::test_empty" in wrong.reason
    broken = found.evaluate(agent(**{"stats.py": "def mean(x): return 0.0\n"}), task, 0, box, None)
    assert not broken.solved and broken.partial == 0  # it breaks what passed before
    leaves = "import os\nos._exit(0)\n"
    forged = found.evaluate(agent(**{"stats.py": leaves}), task, 0, box, None)
    assert not forged.solved
