import io
import os
import pty
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jax
import pytest

from launch import doctor
from selfevolve_jax.dgm.sandbox import bubblewrap
from selfevolve_jax.ui_genie import miniwob

ROOT = Path(doctor.__file__).parents[1]


@pytest.fixture(autouse=True)
def forget_versions():
    doctor._version.cache_clear()
    yield
    doctor._version.cache_clear()


def part(name):
    found = [p for p in doctor.optional_parts() if p.name == name]
    assert len(found) == 1
    return found[0]


def test_every_extra_of_the_project_is_listed_with_its_command():
    defined = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    offered = {
        match[1]
        for p in doctor.optional_parts()
        if (match := re.fullmatch(r"uv sync --extra (\S+)", p.command))
    }
    assert offered == set(defined)
    assert set(defined) <= set(doctor.ENABLES)  # each says what it is for


def test_the_machine_and_jax_are_told(monkeypatch):
    facts = dict([*doctor.machine(), *doctor.jax_facts()])
    assert facts["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert facts["jax"] == jax.__version__ and re.match(r"\d+ × cpu", facts["devices"])
    assert re.fullmatch(r"[\d.]+ GiB", facts["disk free here"])
    assert int(facts["cores"].split()[0]) >= 1


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        ("raise RuntimeError('libtpu.so: bad')", "broken: RuntimeError: libtpu.so: bad"),
        ("import os; os.abort()", "broken: exit code -6"),
        ("import time; time.sleep(60)", "no answer from JAX within 1 s"),
    ],
)
def test_a_broken_accelerator_is_reported(probe, says):
    assert dict(doctor.jax_facts(probe, seconds=1 if "sleep" in probe else 30))[
        "devices"
    ].startswith(says)


def test_what_jax_warns_of_is_passed_on():
    probe = "import sys; print('a GPU is here, jaxlib is not', file=sys.stderr)\n"
    probe += 'print(\'[["gpu", "H100"], ["gpu", "H100"]]\')'
    facts = dict(doctor.jax_facts(probe))
    assert facts["devices"] == "2 × gpu (H100)"
    assert facts["jax says"] == "a GPU is here, jaxlib is not"


def fake_metadata(monkeypatch, requires, versions):
    def version(name):
        if name in versions:
            return versions[name]
        raise metadata.PackageNotFoundError(name)

    def lines(name):
        if name in requires:
            return requires[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lines)


def test_an_extra_is_installed_when_all_it_adds_is_there(monkeypatch):
    requires = {
        "selfevolve-jax": [
            "numpy>=2",
            "jax[tpu] ; extra == 'tpu'",
            "wandb>=0.19 ; extra == 'wandb'",
        ],
        "jax": ["numpy", "libtpu==0.0.4.* ; extra == 'tpu'", "requests ; extra == 'tpu'"],
    }
    fake_metadata(monkeypatch, requires, {"jax": "1", "libtpu": "0.0.4.1", "wandb": "0.18.0"})
    assert part("tpu").needs == "libtpu, requests"
    assert not part("tpu").installed and part("tpu").missing == "requests"
    assert part("wandb").missing == "wandb>=0.19 (here: 0.18.0)"
    doctor._version.cache_clear()
    versions = {"jax": "1", "libtpu": "0.0.4.1", "requests": "2", "wandb": "0.19.1"}
    fake_metadata(monkeypatch, requires, versions)
    assert part("tpu").installed and part("wandb").installed


def test_programs_are_looked_for_on_the_path(monkeypatch):
    def chromium():
        [found] = [p for p in doctor.optional_parts() if p.needs == miniwob.PROGRAMS[0]]
        return found

    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)
    assert chromium().missing == miniwob.PROGRAMS[0]
    assert chromium().command == "apt-get install chromium-headless-shell"
    monkeypatch.setattr(doctor.shutil, "which", lambda program: "/usr/bin/" + program)
    assert chromium().installed


def test_run_from_a_bare_checkout_it_says_how_to_install(monkeypatch):
    fake_metadata(monkeypatch, {}, {})

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", absent)
    assert "uv sync" in dict(doctor.machine())["selfevolve-jax"]
    assert {p.name for p in doctor.optional_parts()} == {"gui", "ray"}


def test_plain_lines_off_a_tty(monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    doctor.doctor()
    lines = out.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    [tpu] = [line for line in lines if line.startswith("tpu ")]
    assert "enables training on TPU" in tpu
    assert ("install with: uv sync --extra tpu" in tpu) == ("missing" in tpu)


def test_a_table_on_a_tty():
    leader, follower = pty.openpty()
    code = "from launch.doctor import doctor; doctor()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160", "JAX_PLATFORMS": "cpu"},
    )
    os.close(follower)
    data = b""
    try:
        while chunk := os.read(leader, 65536):
            data += chunk
    except OSError:  # the other end has closed
        pass
    os.close(leader)
    assert process.wait() == 0
    text = data.decode()
    assert "│" in text and "uv sync --extra trackio" in text


def test_the_sandbox_and_what_it_lacks_are_told(monkeypatch):
    class Box:
        name = "bubblewrap"
        unenforced = ("memory: not held", "processes: not held")

        def close(self):
            closed.append(self)

    closed: list[Box] = []
    monkeypatch.setattr(doctor, "open_box", lambda workers: Box())
    assert doctor.sandbox_facts() == [
        ("sandbox", "bubblewrap"),
        ("sandbox lacks", "memory: not held"),
        ("sandbox lacks", "processes: not held"),
    ]
    monkeypatch.setattr(Box, "unenforced", ())
    assert doctor.sandbox_facts() == [("sandbox", "bubblewrap; all limits hold")]
    assert len(closed) == 2


def test_no_sandbox_is_told_with_its_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bubblewrap, "find_bwrap", lambda: None)
    ((name, said),) = doctor.sandbox_facts()
    assert name == "sandbox" and said.startswith("none: ")
    assert "apt-get install bubblewrap" in said
