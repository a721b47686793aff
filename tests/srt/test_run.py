"""A whole recipe in one process: arms side by side, the base's cache, the summary."""

import os
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from etils import epath

from models.config import ModelConfig
from selfevolve_jax import checkpoint, made_base, run_dir, sft, sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.experiment import headline
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.srt import base
from selfevolve_jax.srt.recipe import BaseConfig, CheckpointConfig, SRTRecipe
from selfevolve_jax.srt.run import load_task, run
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.trainer import TrainerConfig

# Model, trainer and optimiser as in test_trainer.py, so that nothing compiles twice.
MODEL = ModelConfig(
    vocab_size=16, d_model=32, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48
)
RECIPE = SRTRecipe(
    task=ArithmeticConfig(numbers=(4,), train_rows=64, held_out_rows=8),
    policy=BaseConfig(model=MODEL, numbers=(4,), steps=5, batch=16),
    trainer=TrainerConfig(
        steps=6,
        prompts_per_step=4,
        samples_per_prompt=4,
        max_new_tokens=5,
        eval_every=3,
        eval_samples=2,
        save_every=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=None),
        rollout=RolloutConfig(slots=16, chunk=16),
    ),
    arms=("srt", "random", "ground_truth"),
)


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, summary) of the whole recipe."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, run(RECIPE, folder)


def test_the_summary_has_the_documented_shape(finished):
    folder, summary = finished
    assert run_dir.read_summary(folder) == run_dir.jsonable(summary)
    assert summary.keys() == {"arms", "seconds"} and summary["seconds"] > 0
    assert tuple(summary["arms"]) == RECIPE.arms
    for figures in summary["arms"].values():
        assert {"before", "after"} <= figures.keys() <= {"before", "after", "best"}
        for when in ("before", "after"):
            assert figures[when].keys() == {"mean", "majority", "greedy"}
            assert all(0 <= v <= 1 for v in figures[when].values())
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "summary.json", "report.html", "arms")
    }


def test_arms_share_the_base_the_prompts_and_their_order(finished):
    folder, summary = finished
    arms = [folder / "arms" / arm for arm in RECIPE.arms]
    rows = [
        [[row["row"] for row in run_dir.read_samples(p)] for p in run_dir.sample_steps(a).values()]
        for a in arms
    ]
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) == 6
    texts = [
        [
            [s["text"] for s in r["samples"]]
            for r in run_dir.read_samples(run_dir.sample_steps(a)[1])
        ]
        for a in arms
    ]
    assert texts[0] == texts[1] == texts[2]  # the same policy and the same random numbers
    befores = [figures["before"] for figures in summary["arms"].values()]
    assert befores[0] == befores[1] == befores[2]
    ends = [checkpoint.load_policy(a, sharding.make_mesh(None)).params.embed for a in arms]
    assert not np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[0], ends[2])


def test_each_arm_keeps_a_run_of_its_own(finished):
    for arm in RECIPE.arms:
        folder = finished[0] / "arms" / arm
        assert run_dir.read_config(folder)["config"]["arms"] == [arm]
        assert [line["step"] for line in read_metrics(folder / run_dir.METRICS)] == list(range(7))


def test_another_arm_is_added_on_resume(finished, capsys):
    folder, summary = finished
    before = (folder / "arms" / "srt" / run_dir.METRICS).read_bytes()
    again = run(replace(RECIPE, arms=("format",)), folder, resume=True)
    assert set(again["arms"]) == {*RECIPE.arms, "format"}
    assert {arm: again["arms"][arm] for arm in RECIPE.arms} == summary["arms"]
    assert (folder / "arms" / "srt" / run_dir.METRICS).read_bytes() == before
    assert "base policy: from the cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (
            {"policy": replace(RECIPE.policy, model=replace(MODEL, d_model=64))},
            "policy.model.d_model: 32 -> 64",
        ),
        (
            {"trainer": replace(RECIPE.trainer, samples_per_prompt=8)},
            "trainer.samples_per_prompt: 4 -> 8",
        ),
        ({"seed": 1}, "seed: 0 -> 1"),
    ],
)
def test_a_resume_that_changes_the_run_is_refused(finished, change, shown):
    before = sorted(finished[0].rglob("*"))
    with pytest.raises(UserError, match=shown):
        run(replace(RECIPE, **change), finished[0], resume=True)
    assert sorted(finished[0].rglob("*")) == before


def test_training_goes_on_from_a_checkpoint(finished, tmp_path):
    """An arm of one run is the base of another; its figures before are the other's after."""
    path = str(finished[0] / "arms" / "srt")
    recipe = replace(RECIPE, policy=CheckpointConfig(path), arms=("srt",))
    before = run(recipe, tmp_path / "run")["arms"]["srt"]["before"]
    assert before["greedy"] == finished[1]["arms"]["srt"]["after"]["greedy"]
    first, start = (
        epath.Path(p) / checkpoint.LATEST / "6" for p in (tmp_path / "run" / "arms" / "srt", path)
    )
    mesh = sharding.make_mesh(None)
    assert not np.array_equal(
        checkpoint.load_policy(first, mesh).params.embed,
        checkpoint.load_policy(start, mesh).params.embed,
    )


def test_headline():
    figures = {"mean": 0.25, "majority": 0.5, "greedy": 1.0}
    text = headline(
        {
            "arms": {
                "srt": {"before": figures, "after": figures | {"mean": 0.75}},
                "soft": {"before": {}, "after": {}},
            }
        }
    )
    assert "0.250 → 0.750" in text and "0.500 → 0.500" in text and text.count("no gold") == 3


def test_another_tokenizers_policy_is_refused_for_arithmetic():
    other = arithmetic.tokenizer()
    other.add_tokens(["?"])
    policy = checkpoint.Policy(None, MODEL, other, (15,), 0)
    with pytest.raises(UserError, match="tokenizer of its own"):
        load_task(RECIPE.task, policy, 0)


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tmp_path, home):
    before = sorted(home.rglob("*"))
    small = replace(RECIPE, policy=replace(RECIPE.policy, model=replace(MODEL, vocab_size=8)))
    with pytest.raises(UserError, match=r"vocab_size=8 .* 16 tokens"):
        run(small, tmp_path / "run")
    assert not (tmp_path / "run").exists() and sorted(home.rglob("*")) == before


def task_of(config=RECIPE.task, seed=0):
    return arithmetic.load_task(config, seed)


def test_the_hash_names_all_that_decides_the_weights():
    def name(config=RECIPE.policy, task=None, width=0, seed=0):
        return base.content_hash(config, task or task_of(), width, seed)

    more = task_of(replace(RECIPE.task, train_rows=65))
    other = task_of(replace(RECIPE.task, held_out_rows=9))
    assert name() == name() == name(task=more)  # train rows are not learnt from
    names = [
        name(),
        name(replace(RECIPE.policy, noise=0.3)),
        name(replace(RECIPE.policy, model=replace(MODEL, d_ff=64))),
        name(replace(RECIPE.policy, optimizer=OptimizerConfig(learning_rate=2e-3))),
        name(task=other),
        name(width=6),
        name(seed=1),
    ]
    assert len(set(names)) == len(names)


def test_the_hash_covers_the_code(monkeypatch, tmp_path):
    before = base.content_hash(RECIPE.policy, task_of(), 0, 0)
    monkeypatch.setattr(base, "_SOURCES", base._SOURCES[1:])
    assert base.content_hash(RECIPE.policy, task_of(), 0, 0) != before


def test_the_base_is_made_once_and_the_same_each_time(monkeypatch, tmp_path, mesh1):
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path / "one"))
    said = []
    made = base.get_base(RECIPE.policy, task_of(), 0, 0, mesh1, said.append)
    monkeypatch.setattr(made_base, "make", lambda *a: pytest.fail("made again"))
    found = base.get_base(RECIPE.policy, task_of(), 0, 0, mesh1, said.append)
    monkeypatch.undo()
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path / "two"))
    again = base.get_base(RECIPE.policy, task_of(), 0, 0, mesh1, said.append)
    for other in (found, again):
        jax.tree.map(np.testing.assert_array_equal, made.params, other.params)
    assert ["from the cache" in line for line in said] == [False, False, True, False, False]
    assert len(list((tmp_path / "one" / "bases").iterdir())) == 1


@pytest.mark.parametrize("where", [(sft, "train"), (checkpoint, "save_async")])
def test_an_interrupted_base_leaves_nothing_behind(monkeypatch, tmp_path, mesh1, where):
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path))
    real = getattr(*where)

    def interrupted(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(*where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        base.get_base(RECIPE.policy, task_of(), 0, 0, mesh1, lambda text: None)
    assert not list((tmp_path / "bases").iterdir())


def test_a_base_that_another_process_made_meanwhile_is_taken(monkeypatch, tmp_path, mesh1):
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path))
    rename = os.rename

    def second(source, target):
        if os.path.basename(source).startswith(".") and "orbax" not in str(source):
            shutil.copytree(source, target)  # the other process comes first
        return rename(source, target)

    monkeypatch.setattr(made_base.os, "rename", second)
    base.get_base(RECIPE.policy, task_of(), 0, 0, mesh1, lambda text: None)
    assert len(list((tmp_path / "bases").iterdir())) == 1


def test_a_cache_that_is_no_folder_is_refused_before_any_work(monkeypatch, tmp_path, mesh1):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SELFEVOLVE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(sft, "train", lambda *args: pytest.fail("trained"))
    with pytest.raises(UserError, match="SELFEVOLVE_CACHE"):
        base.get_base(RECIPE.policy, task_of(), 0, 0, mesh1, lambda text: None)
