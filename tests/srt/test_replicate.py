"""Seeds one after another, each an ordinary run; a resume makes nothing twice."""

from dataclasses import fields, replace

import pytest

from selfevolve_jax import run_dir
from selfevolve_jax.errors import UserError
from selfevolve_jax.labels import read_labels
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.srt import replicate as module
from selfevolve_jax.srt.recipe import SRTRecipe
from selfevolve_jax.srt.replicate import ReplicateRecipe, replicate
from tests.srt.test_run import RECIPE

pytestmark = pytest.mark.usefixtures("home")

ARMS = ("srt", "offline", "curriculum_majority")
SMALL = ReplicateRecipe(
    **{f.name: getattr(RECIPE, f.name) for f in fields(SRTRecipe)} | {"arms": ARMS}, seeds=2
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    recipe = replace(SMALL, labels=replace(SMALL.labels, samples=4))
    folder = tmp_path_factory.mktemp("replicate") / "run"
    return recipe, folder, replicate(recipe, folder)


def test_every_seed_runs_every_arm_and_the_page_is_written(done):
    recipe, folder, summary = done
    assert set(summary["seeds"]) == {"0", "1"}
    for seed in (0, 1):
        part = folder / f"seed{seed}"
        assert set(run_dir.read_summary(part)["arms"]) == set(ARMS)
        assert run_dir.read_config(part)["config"]["seed"] == seed
        assert len(read_labels(part / "labels")) == recipe.task.train_rows
    lines = [(folder / f"seed{s}" / "arms" / "srt" / run_dir.METRICS).read_text() for s in (0, 1)]
    assert lines[0] != lines[1]
    page = (folder / run_dir.REPORT).read_text()
    assert "agrees" in page.lower() and "<svg" in page


def test_cures_do_what_they_are_named_after(done):
    """Offline labels never change, a curriculum keeps to the top of its rank, and only them."""
    _, folder, _ = done
    part = folder / "seed0"
    labels = read_labels(part / "labels")
    for path in run_dir.sample_steps(part / "arms" / "offline").values():
        for row in run_dir.read_samples(path):
            assert row["pseudo_label"] == labels[row["row"]].answer
    ranked = sorted(labels.values(), key=lambda label: (-label.majority_fraction, label.id))
    top = {label.id for label in ranked[: round(len(ranked) / 3)]}
    seen = {
        row["row"]
        for path in run_dir.sample_steps(part / "arms" / "curriculum_majority").values()
        for row in run_dir.read_samples(path)
    }
    assert seen <= top and len(seen) > 4


def test_a_resume_makes_nothing_twice_and_goes_on(done, monkeypatch):
    recipe, folder, summary = done
    ran = []

    def counted(one, part, **kwargs):
        ran.append(one.seed)
        return run(one, part, **kwargs)

    run = module.run
    monkeypatch.setattr(module, "run", counted)
    before = read_metrics(folder / "seed0" / "arms" / "srt" / run_dir.METRICS)
    again = replicate(recipe, folder, resume=True)
    assert ran == [] and again["seeds"] == summary["seeds"]
    (folder / "seed1" / run_dir.SUMMARY).unlink()  # killed before its end was written
    assert (
        replicate(recipe, folder, resume=True)["seeds"]["1"]["arms"]
        == summary["seeds"]["1"]["arms"]
    )
    assert ran == [1]
    assert read_metrics(folder / "seed0" / "arms" / "srt" / run_dir.METRICS) == before


def test_quick_is_one_seed_and_half_of_the_steps():
    quick = replace(SMALL, quick=True)
    assert quick.of_seed(0).trainer.steps == SMALL.trainer.steps // 2
    assert SMALL.of_seed(3) == replace(RECIPE, arms=ARMS, seed=3)
    with pytest.raises(UserError, match="seeds=0"):
        replace(SMALL, seeds=0)
