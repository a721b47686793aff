import errno
import gzip
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevolve_jax import run_dir
from selfevolve_jax.errors import DiskError, UserError

CONFIG = {"seed": 0, "model": {"layers": 2, "width": 64}, "trainer": {"steps": 10, "lr": 1e-4}}
ROOT = Path(run_dir.__file__).parents[1]


def changed(**options):
    return {**CONFIG, **options}


def test_create_writes_config_versions_and_revision(tmp_path):
    run = run_dir.create(str(tmp_path / "a" / "b"), CONFIG, resume=False)
    record = json.loads((run / "config.json").read_text())
    assert record["config"] == CONFIG
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["versions"]["jax"] and record["versions"]["numpy"] == np.__version__
    assert {"git_revision", "git_dirty"} <= record.keys()
    assert run_dir.read_config(run) == record


def test_a_run_directory_in_use_is_refused_and_kept(tmp_path):
    run = run_dir.create(str(tmp_path), CONFIG, resume=False)
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"--resume.*another --run-dir") as caught:
        run_dir.create(str(tmp_path), changed(seed=1), resume=False)
    assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 2
    assert (run / "config.json").read_bytes() == before


def test_an_empty_directory_and_our_own_torn_write_are_no_run(tmp_path):
    (tmp_path / ".config.json.123.tmp").write_text('{"conf')
    assert run_dir.create(str(tmp_path), CONFIG, resume=False) == run_dir.epath.Path(tmp_path)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match="is a file"):
            run_dir.create(str(tmp_path / "x"), CONFIG, resume=resume)
    assert (tmp_path / "x").read_text() == "mine"


def test_a_folder_that_cannot_be_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("mine")
    for below in ("file/run", "file/a/run"):
        with pytest.raises(UserError, match=r"file is a file\. Fix"):
            run_dir.check(tmp_path / below, CONFIG, False)
    with pytest.raises(UserError, match="cannot be made there"):
        run_dir.create("/proc/nowhere/run", CONFIG, False)


def test_resume_of_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no config\.json"):
        run_dir.create(str(tmp_path), CONFIG, resume=True)
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("left", [None, (), (".config.json.71.tmp",)])
def test_one_command_line_serves_the_first_start_and_every_restart(tmp_path, capsys, left):
    """left: what a life before left behind; None for no directory. With --resume the first start says
    that it is one, and the next life resumes; a change of options is refused as ever."""
    run = tmp_path / "run"
    if left is not None:
        run.mkdir()
        for name in left:
            (run / name).write_text("{torn")
    run_dir.check(run, CONFIG, True)
    assert run.exists() == (left is not None)  # a check makes nothing
    run_dir.create(run, CONFIG, True)
    said = capsys.readouterr().out
    assert "nothing is there to resume" in said and str(run) in said
    run_dir.check(run, CONFIG, True)  # another process of the run, which looks a moment later
    run_dir.create(run, CONFIG, True)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="seed"):
        run_dir.create(run, changed(seed=1), True)
    with pytest.raises(UserError, match="already exists"):
        run_dir.create(run, CONFIG, False)


@pytest.mark.parametrize("text", ["{torn", "[1]", '{"versions": {}}', "\xff"])
def test_resume_with_a_damaged_config_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json"):
        run_dir.create(str(tmp_path), CONFIG, resume=True)


def test_resume_shows_every_refused_difference_and_only_those(tmp_path):
    run = run_dir.create(str(tmp_path), {**CONFIG, "old_option": 1}, resume=False)
    before = (run / "config.json").read_bytes()
    new = changed(model={"layers": 4, "width": 64}, trainer={"steps": 99, "lr": 3e-4}, new="x")
    with pytest.raises(UserError) as caught:
        run_dir.create(str(tmp_path), new, True, may_change=frozenset(["trainer"]))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert lines == [
        "model.layers: 2 -> 4",
        'new: (absent) -> "x"',
        "old_option: 1 -> (absent)",
    ]
    assert (run / "config.json").read_bytes() == before


def test_resume_takes_permitted_changes_and_a_prefix_is_a_whole_word(tmp_path):
    run_dir.create(str(tmp_path), CONFIG, resume=False)
    new = changed(trainer={"steps": 99, "lr": 1e-4})
    with pytest.raises(UserError, match=r"trainer\.steps: 10 -> 99"):
        run_dir.create(str(tmp_path), new, True, may_change=frozenset(["trainer.step", "train"]))
    run = run_dir.create(str(tmp_path), new, True, may_change=frozenset(["trainer.steps"]))
    assert run_dir.read_config(run)["config"] == new


def test_a_config_that_json_rewrites_still_resumes(tmp_path):
    config = {"shape": (1, 2), "path": Path("x"), "limit": math.inf, "names": {"b", "a"}}
    run_dir.create(str(tmp_path), config, resume=False)
    run_dir.create(str(tmp_path), config, resume=True)


# -- writing whole or not at all


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS], ids=errno.errorcode.get
)
def test_a_refused_write_leaves_the_old_file_alone(tmp_path, monkeypatch, call, number):
    path = tmp_path / "summary.json"
    run_dir.write_json_atomic(path, {"old": 1})

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(DiskError) as caught:
        run_dir.write_json_atomic(path, {"new": 2})
    assert str(path) in str(caught.value) and os.strerror(number) in str(caught.value)
    assert caught.value.exit_code == 1
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_really_full_file_system_is_a_disk_error(tmp_path):
    """The kernel's own refusal: the process may write files of 4 KiB at most."""
    code = """
import resource, signal, sys
from selfevolve_jax import errors, run_dir
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run_dir.write_text_atomic(sys.argv[1], "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    run_dir.write_text_atomic(sys.argv[1], "x" * 100_000)
except errors.DiskError as error:
    print(error)
"""
    path = str(tmp_path / "report.html")
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert path in done.stdout and "File too large" in done.stdout
    assert Path(path).read_text() == "old" and os.listdir(tmp_path) == ["report.html"]


def test_other_errors_are_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_dir.write_text_atomic(tmp_path / "absent" / "x", "")
    (tmp_path / "x").write_text("old")
    with pytest.raises(TypeError, match="object"):
        run_dir.write_json_atomic(tmp_path / "x", {"a": object()})
    assert (tmp_path / "x").read_text() == "old"


def test_a_directory_that_cannot_be_made_is_a_disk_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "makedirs", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskError, match="Permission denied"):
        run_dir.create(str(tmp_path / "run"), CONFIG, resume=False)


# -- what JSON can hold


@dataclass(frozen=True)
class Options:
    name: str
    sizes: tuple[int, ...]


def test_jsonable_by_hand():
    assert run_dir.jsonable(
        {
            "f32": np.float32(0.5),
            "bf16": np.ones(2, ml_dtypes.bfloat16),
            "nan": [math.nan, np.float64("inf"), np.array([1.0, -np.inf])],
            "int": np.int64(3),
            "bool": np.bool_(True),
            "data": Options("a", (1, 2)),
            5: None,
        }
    ) == {
        "f32": 0.5,
        "bf16": [1.0, 1.0],
        "nan": [None, None, [1.0, None]],
        "int": 3,
        "bool": True,
        "data": {"name": "a", "sizes": [1, 2]},
        "5": None,
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_jsonable_output_is_strict_json_and_a_fixed_point(value):
    once = run_dir.jsonable(value)
    assert json.loads(json.dumps(once, allow_nan=False)) == once == run_dir.jsonable(once)


@given(st.dictionaries(st.text("ab", min_size=1), json_values, max_size=4))
def test_flatten_loses_no_leaf(config):
    def leaves(value):
        if isinstance(value, dict) and value:
            return sum(map(leaves, value.values()))
        return 1

    assert len(run_dir.flatten({"top": config})) == leaves(config)


# -- samples and summary

ROW = {
    "step": 3,
    "row": 7,
    "prompt": "1+1=\n",
    "gold": None,
    "pseudo_label": "2",
    "majority_fraction": np.float32(0.5),
    "votes": {"2": 2, "ö": 1},
    "samples": [
        {"text": "half \ud800 surrogate\u2028", "reward": 1.0, "parts": {"vote": 1.0, "kl": -0.25}}
    ],
}


def test_samples_come_back_as_written(tmp_path):
    path = run_dir.write_samples(tmp_path, 123, [ROW, ROW])
    assert path.name == "step_000123.jsonl"
    assert run_dir.read_samples(path) == [{**ROW, "majority_fraction": 0.5}] * 2
    assert "\\ud800" in path.read_text(encoding="utf-8")  # valid UTF-8 for every other reader


def test_large_sample_files_are_gzipped_and_replace_the_plain_one(tmp_path):
    small = run_dir.write_samples(tmp_path, 1, [ROW])
    long = {**ROW, "prompt": "x" * (1 << 20)}
    large = run_dir.write_samples(tmp_path, 1, [long])
    assert large.name == "step_000001.jsonl.gz" and not small.exists()
    first = large.read_bytes()
    assert json.loads(gzip.decompress(first))["prompt"] == long["prompt"]
    assert run_dir.read_samples(large)[0]["prompt"] == long["prompt"]
    assert run_dir.write_samples(tmp_path, 1, [long]).read_bytes() == first
    assert run_dir.write_samples(tmp_path, 1, [ROW]) == small and not large.exists()


def test_sample_steps_are_in_numeric_order_and_skip_strangers(tmp_path):
    assert run_dir.sample_steps(tmp_path) == {}
    for step in (1_000_000, 20, 3):
        run_dir.write_samples(tmp_path, step, [ROW])
    for stranger in (".step_000009.jsonl.1.tmp", "step_x.jsonl", "step_000004.txt"):
        (tmp_path / "samples" / stranger).write_text("")
    assert list(run_dir.sample_steps(tmp_path)) == [3, 20, 1_000_000]


@pytest.mark.parametrize("damage", [b'{"samples": []}\n{"sam', b"[]\n", b'{"a": 1}\n', b"\xff\n"])
def test_damaged_samples_are_named(tmp_path, damage):
    path = tmp_path / "step_000001.jsonl"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=rf"step_000001\.jsonl line {len(damage.splitlines())}"):
        run_dir.read_samples(path)
    torn = tmp_path / "step_000002.jsonl.gz"
    torn.write_bytes(gzip.compress(b"{}\n" * 99)[:-9])
    with pytest.raises(UserError, match=r"step_000002\.jsonl\.gz cannot be read"):
        run_dir.read_samples(torn)


def test_summary_round_trip_and_absence(tmp_path):
    with pytest.raises(UserError, match=r"no summary\.json"):
        run_dir.read_summary(tmp_path)
    figures = {"arms": {"srt": {"before": {"mean": 0.5}, "after": {"mean": np.float32(1)}}}}
    run_dir.write_summary(tmp_path, {**figures, "seconds": math.nan})
    assert run_dir.read_summary(tmp_path) == {**figures, "seconds": None}


def test_git_revision_is_that_of_a_checkout_only(tmp_path, monkeypatch):
    package = tmp_path / "selfevolve_jax" / "run_dir.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(run_dir, "__file__", str(package))
    assert run_dir.git_revision() == (None, None)

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert run_dir.git_revision() == (None, None)  # no commit yet
    git("add", ".")
    git("commit", "-qm", "x")
    assert run_dir.git_revision() == (git("rev-parse", "HEAD"), False)
    package.write_text("changed")
    assert run_dir.git_revision() == (git("rev-parse", "HEAD"), True)
