"""Killed at any instant and resumed, a run ends bit for bit where an undisturbed one ends."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from models.config import ModelConfig
from selfevolve_jax import run_dir, state, step_draw, trainer
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.trainer import TrainerConfig

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
TINY = (
    "--policy.model.d-model 32 --policy.model.n-layers 1 --policy.model.head-dim 8 "
    "--policy.model.d-ff 48 --policy.model.unroll 1 --policy.steps 5 --policy.batch 16 "
    "--policy.numbers 4 --task.numbers 4 --task.train-rows 64 --task.held-out-rows 8 "
    "--trainer.prompts-per-step 4 --trainer.samples-per-prompt 4 --trainer.shared-prompt 1 "
    f"--trainer.max-new-tokens 5 --trainer.eval-samples 2 --trainer.steps {STEPS} "
    "--trainer.save-every 2 --trainer.eval-every 3 --trainer.rollout.slots 16 --arms srt "
    "--trainer.optimizer.learning-rate 1e-3"
)
# π_old and π_ref are then state of their own: scored before the update, held from the start.
OFF_POLICY = "--trainer.grpo.kl-coef 0.1 --trainer.grpo.minibatches 2"
# What the cures carry from step to step: a teacher, the stream's position, what both ends go by.
CURES = (
    "--trainer.teacher-decay 0.9 --trainer.vote-threshold 0.3 --trainer.resample 2 "
    "--trainer.early-stop.patience 9 --trainer.grpo.kl-coef 0.001"
)


def arrays(step_folder):
    """Every array of a checkpoint by part and path, as numpy, whatever this process has for devices."""
    found = {}
    for part in ("params", "train", "progress"):
        tree = ocp.load_checkpointables(step_folder, {part: None})[part]
        leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
        found |= {part + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def assert_same_run(arm, reference, steps=STEPS):
    """Final and best checkpoint, the log without its clocks, and every sample."""
    for kind in ("checkpoints", "best"):
        saved, wanted = (
            sorted(p.name for p in (run / kind).iterdir() if p.name.isdigit())
            for run in (arm, reference)
        )
        assert saved == wanted
        for step in saved:
            mine, theirs = arrays(arm / kind / step), arrays(reference / kind / step)
            assert mine.keys() == theirs.keys()
            assert sum("opt_state" in name for name in mine) > 20
            for name, value in mine.items():
                np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert timeless(arm, steps) == timeless(reference, steps)
    names = [path.name for path in run_dir.sample_steps(reference).values()]
    assert [path.name for path in run_dir.sample_steps(arm).values()] == names
    for name in names:
        assert (arm / "samples" / name).read_bytes() == (reference / "samples" / name).read_bytes()


def timeless(arm, steps):
    clocks = ("time/", "throughput/", "compile/")
    lines = [json.loads(line) for line in (arm / run_dir.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(steps + 1))
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in lines]


def snapshot(source, target):
    """What a kill at this moment would leave. Files that an asynchronous save renames meanwhile are
    left out, as if the kill had come a little earlier for them."""
    for folder, _, names in os.walk(source):  # unlike rglob it passes over folders that vanish
        for path in (Path(folder) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target / path.relative_to(source))


def test_resumed_from_what_any_moment_leaves_behind(mesh1, tmp_path, monkeypatch):
    """The quick proof, in one process: the folder as it was when rollouts began, while checkpoints
    were being written behind; four of those moments, each resumed to the end."""
    model = ModelConfig(
        vocab_size=16, d_model=32, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48
    )
    config = TrainerConfig(  # as in test_trainer.py, so that nothing compiles twice
        steps=6,
        prompts_per_step=4,
        samples_per_prompt=4,
        max_new_tokens=5,
        eval_every=3,
        eval_samples=2,
        save_every=2,
        keep=6,  # copying a folder is no single instant: nothing may be deleted meanwhile
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=None),
        rollout=RolloutConfig(slots=16, chunk=16),
    )
    task = arithmetic.load_task(
        arithmetic.ArithmeticConfig(numbers=(4,), train_rows=16, held_out_rows=8), 0
    )  # 16 rows: the second epoch's order matters too
    params = state.init_params(model, jax.random.key(1), mesh1)

    def train(folder):
        return trainer.train(
            params, model, task, "majority", config,
            seed=3, mesh=mesh1, folder=epath.Path(folder), title="t",
        )  # fmt: skip

    reference, moments = tmp_path / "reference", []
    generate = step_draw.generate

    def watched(*args, **kwargs):
        moments.append(tmp_path / f"moment{len(moments)}")
        snapshot(reference, moments[-1])
        return generate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(step_draw, "generate", watched)
        train(reference)
    assert len(moments) == 6
    writing = [m for m in moments if list(m.rglob("*orbax-checkpoint-tmp*"))]
    chosen = random.Random(0).sample(moments, 3) + writing[-1:]
    for moment in chosen:
        train(moment)
        assert_same_run(moment, reference, steps=6)


def start_srt(folder, options, recipe, bases, programs, **environment):
    """The real command on a tiny run. bases, programs: the caches of these."""
    given = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "SELFEVOLVE_CACHE": str(bases),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONUNBUFFERED": "1",
    }
    arguments = ("srt", recipe, *TINY.split(), "--run-dir", str(folder), *options)
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=ROOT,
        env=given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Starts the real CLI. The processes share a compilation cache, and so the time it saves."""
    cache = tmp_path_factory.mktemp("cache")

    def start(folder, *options, recipe="quickstart"):
        return start_srt(folder, options, recipe, cache / "selfevolve", cache / "jax")

    return start


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def watch(process, moment):
    """Looks until `moment()` is true or the process is gone."""
    while not moment() and process.poll() is None:
        time.sleep(0.001)


def lines_in(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "options",
    [[], OFF_POLICY.split(), CURES.split()],
    ids=["on-policy", "minibatches-and-kl", "cures"],
)
def test_killed_three_times_and_resumed(command, tmp_path, options):
    """SIGKILL after a random step, in the middle of a checkpoint, and after another random step; every
    life is started with the same words."""
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    finish(command(reference, *options))
    arm, chance = killed / "arms" / "srt", random.Random(7)
    first, second = chance.randint(2, 4), chance.randint(7, 9)
    saving = arm / "checkpoints"
    moments = [
        lambda: lines_in(arm / run_dir.METRICS) > first,
        lambda: any("orbax-checkpoint-tmp" in p.name for p in saving.iterdir()),
        lambda: lines_in(arm / run_dir.METRICS) > second,
    ]
    for moment in moments:
        begun = (killed / run_dir.CONFIG).exists()
        process = command(killed, *options, "--resume")
        if begun:  # what the life before left behind does not count
            while not (process.stdout.readline() or "srt").startswith("srt"):
                pass
        watch(process, moment)
        for _ in range(chance.randrange(20_000)):
            pass
        process.kill()
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it had ended before: {err}"
    finish(command(killed, *options, "--resume"))
    assert_same_run(arm, reference / "arms" / "srt")
    one, other = (run_dir.read_summary(run)["arms"] for run in (killed, reference))
    assert one == other


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_replication_killed_while_it_labels_and_while_it_trains(command, tmp_path):
    """SIGKILL amid the labels of the first seed, and amid an arm of the second."""
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    options = ["--seeds", "2", "--arms", "offline", "srt", "--labels.samples", "64"]
    options += ["--task.width", "0"]  # as TINY's responses have 5 tokens at most
    start = partial(command, recipe="replicate")
    finish(start(reference, *options))
    last = killed / "seed1" / "arms" / "srt"
    moments = [
        lambda: (killed / "seed0" / "labels" / "part_00001.jsonl").exists(),
        lambda: lines_in(last / run_dir.METRICS) > 5,
    ]
    for moment in moments:
        process = start(killed, *options, "--resume")
        watch(process, moment)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(start(killed, *options, "--resume"))
    for seed in ("seed0", "seed1"):
        one, other = (run / seed / "labels" for run in (killed, reference))
        for file in sorted(p.name for p in other.glob("*.jsonl")):
            assert (one / file).read_bytes() == (other / file).read_bytes()
        for arm in ("offline", "srt"):
            assert_same_run(*(run / seed / "arms" / arm for run in (killed, reference)))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_politely_and_resumed(command, tmp_path, number):
    reference, stopped = tmp_path / "reference", tmp_path / "stopped"
    finish(command(reference))
    process = command(stopped)
    watch(process, lambda: lines_in(stopped / "arms" / "srt" / run_dir.METRICS) > 3)
    process.send_signal(number)
    _, err = finish(process, 143)
    assert "stopped by a signal after step" in err and "--resume" in err
    assert err.count("╭") == 1
    finish(command(stopped, "--resume"))
    assert_same_run(stopped / "arms" / "srt", reference / "arms" / "srt")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_full_disk_is_one_message(command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60k", "none", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount of a tmpfs here: {error}")
    try:
        _, err = finish(command(disk / "run"), 1)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert "No space left on device" in err
    assert err.startswith("╭") and err.count("╭") == 1 and err.rstrip().endswith("╯")
