"""The loop on a very small policy: what it logs, how it stops, and what it never looks at."""

import errno
import os
import shutil
import signal
import subprocess
from dataclasses import replace

import jax
import numpy as np
import pytest
from etils import epath

from selfevolve_jax import checkpoint, run_dir, sharding, trainer
from selfevolve_jax.endings import Interrupted, TrainingFailed
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.trainer import TrainerConfig
from tests.tiny_text import MODEL, init_params, load_task

CONFIG = TrainerConfig(
    steps=6,
    prompts_per_step=4,
    samples_per_prompt=4,
    max_new_tokens=5,
    eval_every=3,
    eval_samples=2,
    save_every=2,
    optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=None),
    rollout=RolloutConfig(slots=16, chunk=16),
)
# The list, and what a reader of the curves needs beside it.
LOGGED = {
    *("reward/mean", "reward/gold", "judge/label_accuracy", "judge/majority_fraction"),
    *("judge/vote_entropy", "judge/parsed", "judge/timeouts", "judge/trained_fraction"),
    *(
        "judge/answer_entropy",
        "judge/answer_top",
        "response/distinct",
        "alarm/signs",
        "alarm/fired",
    ),
    *("response/length_ended", "response/length_spread"),
    *("policy/entropy", "policy/clip_fraction", "policy/sampler_gap", "policy/advantage_abs"),
    *("response/length_mean", "response/length_max", "response/cut_off"),
    *("train/loss", "train/grad_norm", "train/learning_rate", "train/finite", "train/tokens"),
    *("throughput/tokens_per_s", "compile/count", "time/step", "time/rollout_s"),
    *("time/judge_s", "time/update_dispatch_s", "time/update_wait_s", "time/log_s"),
}


@pytest.fixture(scope="module")
def task():
    return load_task()


@pytest.fixture(scope="module")
def params(mesh1):
    return init_params(mesh1)


@pytest.fixture(scope="module")
def train(task, params, mesh1):
    def run(folder, judge="majority", config=CONFIG, task=task):
        return trainer.train(
            params,
            MODEL,
            task,
            judge,
            config,
            seed=0,
            mesh=mesh1,
            folder=epath.Path(folder),
            title="t",
        )

    return run


@pytest.fixture(scope="module")
def reference(train, tmp_path_factory):
    """(folder, result) of an undisturbed run."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, train(folder)


def at_step(monkeypatch, step, act):
    """Makes every judge call act(verdict) at that step; what it returns replaces the verdict."""
    make = trainer.make_judge

    def make_judge(*args, **kwargs):
        judge, needs_gold = make(*args, **kwargs)

        def acting(rows, texts, now, *more):
            verdict = judge(rows, texts, now, *more)
            return (act(verdict) or verdict) if now == step else verdict

        return acting, needs_gold

    monkeypatch.setattr(trainer, "make_judge", make_judge)


def assert_same(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other
    )


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def timeless(folder):
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "throughput/", "compile/"))}
        for line in read_metrics(folder / run_dir.METRICS)
    ]


def saved_steps(folder):
    return sorted(int(p.name) for p in (folder / checkpoint.LATEST).iterdir() if p.name.isdigit())


def assert_goes_on_to_the_same_end(train, folder, reference):
    result = train(folder)
    assert_same(reference[1].params, result.params)
    assert timeless(folder) == timeless(reference[0])
    assert (result.before, result.after, result.best) == (
        reference[1].before,
        reference[1].after,
        reference[1].best,
    )


def test_every_step_is_logged_once_with_every_metric(reference):
    lines = read_metrics(reference[0] / run_dir.METRICS)
    assert [line["step"] for line in lines] == list(range(7))
    for line in lines[1:]:
        assert line.keys() >= LOGGED
        assert all(v is not None and np.isfinite(v) for v in line.values())
        parts = sum(v for k, v in line.items() if k.startswith("time/") and k.endswith("_s"))
        assert parts == pytest.approx(line["time/step"])
    evaluated = [line["step"] for line in lines if "eval/mean" in line]
    assert evaluated == [0, 3, 6]
    assert saved_steps(reference[0]) == [4, 6]


def test_nothing_compiles_after_the_first_evaluation(reference):
    counts = [line["compile/count"] for line in read_metrics(reference[0] / run_dir.METRICS)[1:]]
    assert counts[2:] == [counts[2]] * 4


def test_the_log_agrees_with_the_samples(reference):
    """Means of the samples log are the logged figures; the votes are of the samples' answers."""
    lines = read_metrics(reference[0] / run_dir.METRICS)
    for step, path in run_dir.sample_steps(reference[0]).items():
        rows = run_dir.read_samples(path)
        groups = [row["samples"] for row in rows]
        trained = [s["reward"] for group in groups for s in group if s["trained"]]
        lengths = [s["length"] for group in groups for s in group]
        golds = [s["answer"] == r["gold"] for r in rows for s in r["samples"]]
        labels = [r["pseudo_label"] == r["gold"] for r in rows]
        line = lines[step]
        assert line["reward/mean"] == pytest.approx(np.mean(trained) if trained else 0)
        assert line["response/length_mean"] == pytest.approx(np.mean(lengths))
        assert line["reward/gold"] == pytest.approx(np.mean(golds))
        assert line["judge/label_accuracy"] == pytest.approx(np.mean(labels))
        for row in rows:
            answers = [s["answer"] for s in row["samples"]]
            assert row["votes"] == {a: answers.count(a) for a in answers if a is not None}


def test_the_best_checkpoint_is_that_of_the_best_evaluation(reference, mesh1):
    folder, result = reference
    means = {x["step"]: x["eval/mean"] for x in timeless(folder) if "eval/mean" in x and x["step"]}
    best = max(means, key=means.get)  # the first of equals
    assert result.best == {"step": best, "mean": means[best]}
    assert checkpoint.load_policy(folder / checkpoint.BEST, mesh1).step == best


def test_label_free_judges_train_alike_whatever_the_gold(train, reference, task, tmp_path):
    """Other labels on the train rows: the same parameters, other figures in the log."""
    wrong = [replace(row, gold=str((int(row.gold) + 1) % 10)) for row in task.train]
    other = train(tmp_path / "m", task=replace(task, train=wrong))
    assert_same(reference[1].params, other.params)
    told, truly = timeless(tmp_path / "m"), timeless(reference[0])
    assert [x["reward/gold"] for x in told[1:]] != [x["reward/gold"] for x in truly[1:]]
    for line in told + truly:
        line.pop("reward/gold", None), line.pop("judge/label_accuracy", None)
    assert told == truly
    # and the arm that may look does differ, or this test could not fail
    right = train(tmp_path / "g", "ground_truth").params
    wronged = train(tmp_path / "h", "ground_truth", task=replace(task, train=wrong)).params
    assert differ(right, wronged)


@pytest.mark.parametrize(
    "judge",
    [
        "majority",
        "empo",
        "rent",
        "self_certainty",
        "evol",
        "random",
        "format",
        "soft_majority",
        "ground_truth",
    ],
)
def test_only_the_ground_truth_judge_is_handed_gold(train, tmp_path, monkeypatch, judge):
    make, seen = trainer.make_judge, []

    def make_judge(*args, **kwargs):
        judge, needs_gold = make(*args, **kwargs)

        def watched(rows, texts, step, *rest):
            seen.extend(row.gold for row in rows)
            return judge(rows, texts, step, *rest)

        return watched, needs_gold

    monkeypatch.setattr(trainer, "make_judge", make_judge)
    train(tmp_path, judge)
    assert len(seen) == 24
    assert all((gold is not None) == (judge == "ground_truth") for gold in seen)


def test_without_gold_nothing_is_scored(train, reference, task, tmp_path):
    bare = replace(
        task,
        train=[row.hide_gold() for row in task.train],
        held_out=[row.hide_gold() for row in task.held_out],
    )
    result = train(tmp_path, task=bare)
    assert (result.before, result.after, result.best) == ({}, {}, None)
    assert_same(reference[1].params, result.params)
    assert not any(k.startswith("eval/") or "gold" in k for x in timeless(tmp_path) for k in x)
    assert not list((tmp_path / checkpoint.BEST).iterdir())


def test_the_callers_parameters_survive(train, params, reference):
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert differ(params, reference[1].params)


def test_a_finished_run_resumed_does_nothing_more(train, reference, tmp_path):
    folder = shutil.copytree(reference[0], tmp_path / "run")
    before = (folder / run_dir.METRICS).read_text()
    assert_goes_on_to_the_same_end(train, folder, reference)
    assert (folder / run_dir.METRICS).read_text() == before


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 3), (signal.SIGINT, 4), (signal.SIGTERM, 6)]
)
def test_a_signal_finishes_the_step_and_saves(
    train, reference, tmp_path, monkeypatch, number, step
):
    """In the last step too: or a recipe's next arm would begin."""
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda verdict: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=f"after step {step}; .* --resume") as caught:
            train(tmp_path)
    assert caught.value.exit_code == 143
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert saved_steps(tmp_path)[-1] == step
    assert_goes_on_to_the_same_end(train, tmp_path, reference)


def test_a_nan_stops_the_run_and_costs_nothing(train, reference, tmp_path, monkeypatch):
    """Named by step and metric, never saved, not even at a step that saves."""

    def spoil(verdict):
        return replace(verdict, rewards_RxG=verdict.rewards_RxG * np.nan)

    with monkeypatch.context() as patch:
        at_step(patch, 4, spoil)
        with pytest.raises(TrainingFailed, match=r"step 4: train/loss.* NaN") as caught:
            train(tmp_path)
    assert caught.value.exit_code == 1
    assert saved_steps(tmp_path) == [2]
    last = read_metrics(tmp_path / run_dir.METRICS)[-1]
    assert last["step"] == 4 and last["train/loss"] is None and last["train/finite"] == 0
    assert_goes_on_to_the_same_end(train, tmp_path, reference)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, or a skip where mounting one is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount of a tmpfs here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# TensorStore's threads go on telling of it after the wait has ended
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine")
@pytest.mark.parametrize(
    ("left", "named"), [(0, "step_000005.jsonl"), (40_000, "saving a checkpoint")]
)
def test_a_full_disk_stops_the_run_and_costs_nothing(
    train, reference, small_disk, monkeypatch, left, named
):
    """With no room at all the samples fail; with a little, a checkpoint that is written behind."""
    ballast = small_disk / "ballast"

    def fill(verdict):
        space = os.statvfs(small_disk)
        ballast.write_bytes(b"\1" * (space.f_bavail * space.f_frsize - left))

    with monkeypatch.context() as patch:
        at_step(patch, 5, fill)  # the save of step 4 has waited for that of step 2
        if not left:
            save = checkpoint.save_async
            patch.setattr(
                checkpoint, "save_async", lambda c, *rest: (save(c, *rest), checkpoint.finish(c))
            )
        with pytest.raises(DiskError, match="No space left on device") as caught:
            train(small_disk / "run")
    assert caught.value.exit_code == 1 and named in str(caught.value)
    assert saved_steps(small_disk / "run")[0] == 2
    ballast.unlink()
    assert_goes_on_to_the_same_end(train, small_disk / "run", reference)


def test_no_space_for_samples_is_a_disk_error(train, reference, tmp_path, monkeypatch):
    """The same by injection, where no file system can be mounted."""

    def refuse(old, new):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), new)

    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda verdict: patch.setattr(run_dir.os, "replace", refuse))
        with pytest.raises(DiskError, match=r"step_000003\.jsonl: No space left"):
            train(tmp_path)
    assert_goes_on_to_the_same_end(train, tmp_path, reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"trainer\.steps=0"),
        ({"save_every": -1}, r"trainer\.save_every=-1"),
        ({"trained_per_prompt": 33}, r"trained_per_prompt=33 .*samples_per_prompt=32"),
        ({"vote_threshold": 1.5}, r"vote_threshold=1\.5"),
        ({"shared_prompt": 3}, r"shared_prompt=3 does not divide .*samples_per_prompt=32"),
        ({"resample": -1}, r"trainer\.resample=-1"),
        ({"teacher_decay": 1.5}, r"trainer\.teacher_decay=1\.5"),
        ({"sampling": Sampling(temperature=0.0)}, r"temperature=0"),
        ({"sampling": Sampling(top_p=0.0)}, r"top_p=0"),
    ],
)
def test_bad_settings_name_the_field_and_the_values(options, message):
    with pytest.raises(UserError, match=message):
        TrainerConfig(**options)


def test_a_batch_that_does_not_divide_is_refused(mesh1, mesh8):
    trainer.check_batch(CONFIG, mesh8)  # 16 rows over 4 shards
    with pytest.raises(UserError, match=r"= 15 rows do not divide over 4 batch shards"):
        trainer.check_batch(replace(CONFIG, prompts_per_step=5, samples_per_prompt=3), mesh8)
    with pytest.raises(UserError, match=r"grpo\.accumulate=3 .* multiple of 3"):
        trainer.check_batch(replace(CONFIG, grpo=GRPOConfig(accumulate=3)), mesh1)
    with pytest.raises(UserError, match=r"does not fit|divide"):
        sharding.make_mesh(MeshConfig(fsdp=3))
