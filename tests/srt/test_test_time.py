"""Training on the test set without its labels: same problems, and gold nowhere near the judge."""

from dataclasses import replace

import jax
import pytest
from etils import epath

from models.config import ModelConfig
from selfevolve_jax import trainer
from selfevolve_jax.errors import UserError
from selfevolve_jax.judges import registry
from selfevolve_jax.judges.paired import with_views
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.run_dir import METRICS
from selfevolve_jax.srt.test_time import at_test_time
from selfevolve_jax.state import init_params
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig, load_task
from selfevolve_jax.tasks.base import Row
from selfevolve_jax.trainer import TrainerConfig

TASK = load_task(ArithmeticConfig(numbers=(4,), train_rows=64, held_out_rows=8), 0)
# Model, trainer and optimiser as in test_trainer.py, so that nothing compiles twice.
MODEL = ModelConfig(
    vocab_size=16, d_model=32, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48
)
CONFIG = TrainerConfig(
    steps=2,
    prompts_per_step=4,
    samples_per_prompt=4,
    max_new_tokens=5,
    eval_every=2,
    eval_samples=2,
    save_every=2,
    optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, clip_norm=None),
    rollout=RolloutConfig(slots=16, chunk=16),
)


def test_the_training_rows_are_the_held_out_ones_without_gold():
    task = at_test_time(TASK)
    assert [(r.id, r.prompt, r.prompt_tokens) for r in task.train] == [
        (r.id, r.prompt, r.prompt_tokens) for r in TASK.held_out
    ]
    assert all(r.gold is None for r in task.train)
    assert task.held_out == TASK.held_out and all(r.gold for r in task.held_out)
    assert replace(task, train=TASK.train) == TASK


def test_other_views_stay_and_carry_no_gold():
    """Metadata with the answer in it, as reasoning-gym's, goes; the paired view stays."""
    view = Row(9, "other", (3, 4), gold="1", extra={"metadata": {"answer": "1"}})
    row = replace(TASK.held_out[0], extra={"pair": view, "metadata": {"answer": "1"}})
    (kept,) = at_test_time(replace(TASK, held_out=[row])).train
    assert kept.extra == {"pair": Row(9, "other", (3, 4))}
    both = with_views([kept])
    assert [r.prompt for r in both] == [row.prompt, "other"]
    assert [r.gold for r in both] == [None, None] and {r.id for r in both} == {row.id}


def test_a_task_that_holds_nothing_out_is_refused():
    with pytest.raises(UserError, match="no held-out problems"):
        at_test_time(replace(TASK, held_out=[]))


def run(judge, folder, mesh):
    params = init_params(MODEL, jax.random.key(1), mesh)
    return trainer.train(
        params,
        MODEL,
        at_test_time(TASK),
        judge,
        CONFIG,
        seed=0,
        mesh=mesh,
        folder=folder,
        title="test",
    )


def test_a_run_trains_on_the_test_set_and_its_judge_never_meets_gold(tmp_path, mesh1, monkeypatch):
    """Every row that reaches the judge is looked at, and the held-out figures are there."""
    met, real = [], registry.make_judge

    def spying(*args, **options):
        judge, _ = real(*args, **options)

        def spy(rows, texts, step, samples=None):
            met.extend(rows)
            return judge(rows, texts, step, samples)

        # True asks the loop not to hide anything: gold would be seen if there were some.
        return spy, True

    monkeypatch.setattr(trainer, "make_judge", spying)
    result = run("majority", epath.Path(tmp_path / "run"), mesh1)
    assert len(met) == 8 and all(row.gold is None and not row.extra for row in met)
    assert {row.id for row in met} == {row.id for row in TASK.held_out}  # one epoch of 8
    assert result.before.keys() == result.after.keys() == {"mean", "majority", "greedy"}
    logged = read_metrics(tmp_path / "run" / METRICS)
    assert all("reward/gold" not in line for line in logged if line["step"])


def test_ground_truth_cannot_be_trained_on_here(tmp_path, mesh1):
    with pytest.raises(UserError, match="has no gold answer"):
        run("ground_truth", epath.Path(tmp_path / "run"), mesh1)
