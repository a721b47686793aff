"""The cures inside the loop, on a very small policy: each ends as it says, and again after a kill."""

import os
import shutil
import signal
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from selfevolve_jax import alarm, checkpoint, keys, run_dir, teacher, trainer
from selfevolve_jax.early_stop import EarlyStop
from selfevolve_jax.endings import Interrupted
from selfevolve_jax.errors import UserError
from selfevolve_jax.evaluate import Scores
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.tasks.base import batch_at
from selfevolve_jax.trainer import TrainerConfig
from tests.test_resume import arrays, assert_same_run
from tests.tiny_text import MODEL, init_params, load_task

CONFIG = TrainerConfig(
    steps=6,
    prompts_per_step=4,
    samples_per_prompt=4,
    max_new_tokens=5,
    eval_every=6,
    eval_samples=2,
    save_every=2,
    keep=6,
    alarm="off",
    grpo=GRPOConfig(entropy_coef=0.1),  # so that a step changes the policy whatever the votes
    optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=None),
    rollout=RolloutConfig(slots=16, chunk=16),
)


@pytest.fixture(scope="module")
def task():
    return load_task()


@pytest.fixture(scope="module")
def params(mesh1):
    return init_params(mesh1)


@pytest.fixture(scope="module")
def train(task, params, mesh1):
    def run(folder, config, judge="majority", task=task):
        return trainer.train(
            params, MODEL, task, judge, config,
            seed=0, mesh=mesh1, folder=epath.Path(folder), title="t",
        )  # fmt: skip

    return run


@pytest.fixture
def scripted(monkeypatch):
    """Replaces held-out scoring by means written down: step -> mean."""

    def use(means):
        steps = {_numbers(keys.step_key(0, keys.HELD_OUT, s)): s for s in means}

        def score(*args, key, **kwargs):
            nothing: Any = None  # the loop reads no grades
            return Scores(means[steps[_numbers(key)]], 0.5, 0.5, nothing, [])

        monkeypatch.setattr(trainer.evaluate, "score", score)

    return use


def _numbers(key):
    return tuple(jax.random.key_data(key).tolist())


def killed(train, monkeypatch, folder, config, step, how):
    """Runs until the judge of `step`, where it is killed outright or by a polite signal."""
    make = trainer.make_judge

    def make_judge(*args, **kwargs):
        judge, needs_gold = make(*args, **kwargs)

        def acting(rows, texts, now, *rest):
            if now == step and how == "crash":
                raise KeyboardInterrupt
            if now == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return judge(rows, texts, now, *rest)

        return acting, needs_gold

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_judge", make_judge)
        with pytest.raises(KeyboardInterrupt if how == "crash" else Interrupted):
            train(folder, config)


def same_end(train, config, folder, reference):
    """Resumed to the end, `folder` holds what `reference` holds, which (folder, result) has."""
    result = train(folder, config)
    steps = read_metrics(reference[0] / run_dir.METRICS)[-1]["step"]
    extra = {p.name for p in (folder / "checkpoints").iterdir()} - {
        p.name for p in (reference[0] / "checkpoints").iterdir()
    }
    for name in extra:  # a signal saves where nothing else does
        shutil.rmtree(folder / "checkpoints" / name)
    assert_same_run(folder, reference[0], steps)
    jax.tree.map(np.testing.assert_array_equal, result.params, reference[1].params)
    assert replace(result, params=None) == replace(reference[1], params=None)


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def assert_policy(params, folder, kind, step):
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    stored = checkpoint.load_policy(folder / kind / str(step), mesh).params
    jax.tree.map(np.testing.assert_array_equal, params, stored)


EARLY = replace(CONFIG, eval_every=1, early_stop=EarlyStop(patience=2))
MEANS = {0: 0.1, 1: 0.2, 2: 0.4, 3: 0.3, 4: 0.35, 5: 0.9, 6: 0.9}


def test_early_stopping_ends_with_the_best_and_again_after_a_kill(
    train, scripted, tmp_path, monkeypatch, capsys, params
):
    scripted(MEANS)
    folder = tmp_path / "whole"
    result = train(folder, EARLY)
    assert result.ended == {"why": "early_stop", "step": 4, "restored": 2}
    assert result.after["mean"] == 0.4 and result.best == {"step": 2, "mean": 0.4}
    assert_policy(result.params, folder, "best", 2)
    assert_policy(result.params, folder, "checkpoints", 4)
    assert differ(result.params, params)
    assert checkpoint.find_policy(folder)[1].name == "4"
    lines = read_metrics(folder / run_dir.METRICS)
    assert [line["step"] for line in lines if "ended/early_stop" in line] == [4]
    assert lines[-1]["step"] == 4
    assert "stopped early" in (out := capsys.readouterr().out) and "policy of step 2" in out
    before = (folder / run_dir.METRICS).read_bytes()
    same_end(train, EARLY, folder, (folder, result))
    assert (folder / run_dir.METRICS).read_bytes() == before
    for step, how in ((3, "signal"), (4, "crash")):
        other = tmp_path / f"{how}{step}"
        killed(train, monkeypatch, other, EARLY, step, how)
        same_end(train, EARLY, other, (folder, result))


def test_where_training_only_harms_the_base_is_given_back(train, scripted, tmp_path, params):
    scripted({0: 0.5, 1: 0.2, 2: 0.1})
    result = train(tmp_path, EARLY)
    assert result.ended == {"why": "early_stop", "step": 2, "restored": 0}
    jax.tree.map(np.testing.assert_array_equal, result.params, params)


def test_the_best_is_restored_when_the_steps_are_over_first(train, scripted, tmp_path):
    scripted({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.55})
    result = train(tmp_path, EARLY)
    assert result.ended == {"why": "steps", "step": 6, "restored": 5}
    assert_policy(result.params, tmp_path, "best", 5)


def test_early_stopping_without_labels_is_refused(train, task, tmp_path):
    bare = replace(task, held_out=[row.hide_gold() for row in task.held_out])
    with pytest.raises(UserError, match=r"early_stop\.patience=2 needs held-out rows with gold"):
        train(tmp_path, EARLY, task=bare)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def rule(monkeypatch):
    """An alarm whose first sign shows at a given step and which fires one step later."""
    monkeypatch.setattr(
        alarm,
        "read",
        lambda h, rows: alarm.Reading(("a sign",) if len(h) >= 3 else (), len(h) >= 4),
    )


def test_the_alarm_warns_stops_or_rolls_back(train, scripted, rule, tmp_path, monkeypatch, capsys):
    scripted(dict.fromkeys(range(7), 0.5))
    warned = train(tmp_path / "warn", replace(CONFIG, alarm="warn"))
    lines = read_metrics(tmp_path / "warn" / run_dir.METRICS)[1:]
    assert [line["alarm/fired"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [line["alarm/signs"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert warned.ended is None and capsys.readouterr().out.count("collapse alarm at step 4") == 1

    stop = replace(CONFIG, alarm="stop")
    stopped = train(tmp_path / "stop", stop)
    assert stopped.ended == {"why": "alarm", "step": 5, "restored": None}

    back = replace(CONFIG, alarm="rollback")
    rolled = train(tmp_path / "back", back)
    assert rolled.ended == {"why": "alarm", "step": 5, "restored": 2}
    assert_policy(rolled.params, tmp_path / "warn", "checkpoints", 2)
    assert differ(rolled.params, stopped.params)
    assert_policy(rolled.params, tmp_path / "back", "checkpoints", 5)
    ended = read_metrics(tmp_path / "back" / run_dir.METRICS)[-1]
    assert ended["step"] == 5 and ended["ended/alarm"] == 1
    # A signal in step 4 brings the numbers that fire early; the run still ends where it did.
    for name, config, reference in (("stop", stop, stopped), ("back", back, rolled)):
        for step, how in ((4, "signal"), (5, "crash")):
            other = tmp_path / f"{name}{how}"
            killed(train, monkeypatch, other, config, step, how)
            same_end(train, config, other, (tmp_path / name, reference))


def test_without_a_sound_checkpoint_the_base_is_given_back(train, scripted, rule, tmp_path, params):
    scripted(dict.fromkeys(range(7), 0.5))
    result = train(tmp_path, replace(CONFIG, alarm="rollback", save_every=3))
    assert result.ended == {"why": "alarm", "step": 5, "restored": 0}
    jax.tree.map(np.testing.assert_array_equal, result.params, params)


def test_the_filter_fills_the_batch_from_the_stream(train, task, scripted, tmp_path, monkeypatch):
    scripted({0: 0.5, 6: 0.5})
    config = replace(CONFIG, vote_threshold=0.25, resample=2)
    folder = tmp_path / "whole"
    result = train(folder, config)
    lines = read_metrics(folder / run_dir.METRICS)[1:]
    drawn = [int(line["resample/rows"]) for line in lines]
    assert max(line["resample/rounds"] for line in lines) == 2 and sum(drawn) > 24
    assert arrays(folder / "checkpoints" / "6")["progress['position']"] == sum(drawn)
    ids, order = [], []
    for step, path in run_dir.sample_steps(folder).items():
        rows = run_dir.read_samples(path)
        assert len(rows) == drawn[step - 1]
        batch = [row for row in rows if not row.get("dropped")]
        assert len(batch) == 4
        for row in rows:
            enough = row["majority_fraction"] >= 0.25
            assert enough == any(s["trained"] for s in row["samples"])
            assert not (enough and row.get("dropped"))
        ids.append(sorted(row["row"] for row in rows))
    for n, position in zip(drawn, np.cumsum([0, *drawn[:-1]]), strict=True):
        stream = batch_at(task.train, 0, int(position), n)
        order.append(sorted(row.id for row in stream))
    assert ids == order
    other = tmp_path / "killed"
    killed(train, monkeypatch, other, config, 4, "crash")
    same_end(train, config, other, (folder, result))


def test_the_teacher_follows_and_votes(train, scripted, tmp_path):
    scripted({0: 0.5, 6: 0.5})
    config = replace(CONFIG, teacher_decay=0.75, save_every=1)
    result = train(tmp_path / "whole", config)
    stored = [arrays(tmp_path / "whole" / "checkpoints" / str(s)) for s in range(1, 7)]
    names = [k for k, v in stored[0].items() if k.startswith("params") and v.dtype != object]
    slow = {k: k.replace("params", "train['teacher']", 1) for k in names}
    assert all(stored[0][slow[k]].dtype == np.float32 for k in names)
    for before, after in pairwise(stored):
        for k in names:
            expected = np.float32(0.75) * before[slow[k]] + np.float32(0.25) * after[k]
            np.testing.assert_allclose(after[slow[k]], expected, rtol=1e-6, atol=1e-8)
    moved = any(not np.array_equal(stored[-1][k], stored[-1][slow[k]]) for k in names)
    assert moved
    seen = 0
    for path in run_dir.sample_steps(tmp_path / "whole").values():
        for row in run_dir.read_samples(path):
            assert len(row["teacher_texts"]) == 4
            assert sum(row["votes"].values()) <= 4
            for s in row["samples"]:
                right = row["pseudo_label"] is not None and s["answer"] == row["pseudo_label"]
                assert s["reward"] == (right and s["trained"])
            seen += row["teacher_texts"] != [s["text"] for s in row["samples"]]
    assert seen > 12  # keys of its own
    (tmp_path / "resumed").mkdir()
    for name in ("checkpoints/1", "checkpoints/2", "metrics.jsonl", "samples", "best"):
        source, target = tmp_path / "whole" / name, tmp_path / "resumed" / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    same_end(train, config, tmp_path / "resumed", (tmp_path / "whole", result))


def test_a_teacher_concerns_the_majority_judge_alone(train, scripted, tmp_path):
    scripted({0: 0.5, 6: 0.5})
    plain = train(tmp_path / "plain", CONFIG, "ground_truth")
    taught = train(tmp_path / "taught", replace(CONFIG, teacher_decay=0.5), "ground_truth")
    jax.tree.map(np.testing.assert_array_equal, plain.params, taught.params)
    assert not any("teacher" in k for k in arrays(tmp_path / "taught" / "checkpoints" / "6"))


def test_the_teachers_vote_labels_the_policys_samples(task):
    texts = [["1.", "2.", "no", "1."], ["3."] * 4, ["5."] * 4]
    voted = [["2.", "2.", "2.", "1."], ["no"] * 4, ["5.", "6.", "7.", "8."]]
    with Equivalence(task.answer.equivalence) as equivalence:
        judged = teacher.teacher_vote(
            texts, voted, task.answer, equivalence, threshold=0.5, trained=3
        )
    assert judged.pseudo_labels == ["2", None, "5"]
    assert judged.rewards_RxG.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4]
    assert judged.trained_RxG.tolist() == [[True] * 3 + [False], [False] * 4, [False] * 4]
    assert judged.majority_fraction_R.tolist() == [0.75, 0, 0.25]
    assert judged.votes[0] == {"2": 3, "1": 1} and judged.answers[0] == ["1", "2", None, "1"]
