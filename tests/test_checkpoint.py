"""Checkpoints: exact round trips, other meshes, damage, full disks, and how a policy is found."""

import errno
import os
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import checkpoint, state
from selfevolve_jax.errors import DiskError, UserError
from selfevolve_jax.optimizer import OptimizerConfig, decay_mask, make_optimizer
from selfevolve_jax.tasks import arithmetic

PROGRESS = {
    "position": 123_456_789_012,
    "before": {},
    "scores": {"mean": 0.1, "greedy": 1 / 3},
    "best": {"step": 3, "mean": 0.7},
    "tracker_id": "abc",
}


def optimiser(model):
    return make_optimizer(OptimizerConfig(), 10, decay_mask(decoder.abstract_params(model)))


@pytest.fixture(scope="module")
def trained(tiny, mesh1):
    """A state in which no two arrays are the same, so that a wrong or missing one shows."""
    rng = np.random.default_rng(0)

    def filled(leaf):
        values = rng.normal(0, 9, leaf.shape).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(filled, state.abstract_state(tiny, optimiser(tiny), mesh1))


@pytest.fixture(scope="module")
def saved(trained, tiny, tmp_path_factory):
    """A policy folder with a checkpoint of step 8."""
    folder = tmp_path_factory.mktemp("policy")
    text = arithmetic.tokenizer()
    checkpoint.save_policy_files(folder, tiny, text, (15,))
    save(folder / checkpoint.LATEST, trained, 8)
    return folder


def save(folder, full, step, progress=PROGRESS, keep=2):
    checkpoints = checkpoint.open_checkpoints(folder, keep)
    checkpoint.save_async(checkpoints, full, step, progress)
    checkpoint.finish(checkpoints)
    checkpoint.close(checkpoints)


def restore(folder, model, mesh):
    checkpoints = checkpoint.open_checkpoints(folder, 2)
    try:
        return checkpoint.restore(checkpoints, state.abstract_state(model, optimiser(model), mesh))
    finally:
        checkpoint.close(checkpoints)


def assert_same(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other
    )


def test_nothing_saved_restores_nothing(tmp_path, tiny, mesh1):
    assert restore(tmp_path / "c", tiny, mesh1) is None


def test_round_trip_is_exact(saved, trained, tiny, mesh1):
    again, progress = restore(saved / checkpoint.LATEST, tiny, mesh1)
    assert_same(trained, again)
    assert progress == PROGRESS
    kinds = {k: type(v) for k, v in progress.items()}
    assert kinds == {k: type(v) for k, v in PROGRESS.items()}


def test_another_mesh_and_back_is_exact(saved, trained, tiny, mesh1, mesh8, tmp_path):
    spread, _ = restore(saved / checkpoint.LATEST, tiny, mesh8)
    assert spread.params.embed.sharding.mesh.size == 8
    assert not spread.params.embed.sharding.is_fully_replicated
    moments = spread.opt_state[1][0].mu
    jax.tree.map(lambda p, m: p.sharding == m.sharding or pytest.fail(), spread.params, moments)
    assert_same(trained, spread)
    save(tmp_path / "c", spread, 9)
    assert_same(trained, restore(tmp_path / "c", tiny, mesh1)[0])


def test_a_save_is_of_its_moment_whatever_happens_after(trained, tiny, mesh1, tmp_path):
    """The next update donates the buffers and moves on in `progress` while the save is written."""
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    mine = jax.jit(lambda s: jax.tree.map(jax.numpy.copy, s))(trained)
    progress = {"position": 5, "best": {"step": 1, "mean": 0.5}}
    checkpoints = checkpoint.open_checkpoints(tmp_path / "c", 1)
    checkpoint.save_async(checkpoints, mine, 8, progress)
    progress["position"], progress["best"]["mean"] = 6, 0.0
    jax.block_until_ready(spoil(mine))
    checkpoint.close(checkpoints)
    again, stored = restore(tmp_path / "c", tiny, mesh1)
    assert_same(trained, again)
    assert stored == {"position": 5, "best": {"step": 1, "mean": 0.5}}


def test_keeps_the_newest(trained, tmp_path):
    checkpoints = checkpoint.open_checkpoints(tmp_path / "c", 2)
    for step in (1, 2, 3):
        checkpoint.save_async(checkpoints, trained, step, {"position": step})
    checkpoint.close(checkpoints)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "3"]


def test_a_later_best_of_a_killed_life_gives_way(trained, tmp_path):
    """Orbax drops a save that is not the newest, without a word; so the later one must go first."""
    save(tmp_path / "c", trained, 8, keep=1)
    checkpoints = checkpoint.open_checkpoints(tmp_path / "c", 1)
    checkpoint.forget_after(checkpoints, 3)
    checkpoint.save_async(checkpoints, trained, 4, {"position": 4})
    checkpoint.close(checkpoints)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["4"]


def test_forgets_nothing_up_to_the_step(trained, tmp_path):
    save(tmp_path / "c", trained, 8)
    checkpoints = checkpoint.open_checkpoints(tmp_path / "c", 2)
    checkpoint.forget_after(checkpoints, 8)
    checkpoint.close(checkpoints)
    assert (tmp_path / "c" / "8").exists()


def test_another_shape_is_refused_with_both(saved, mesh1):
    wider = ModelConfig(
        vocab_size=16, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64
    )
    with pytest.raises(UserError, match=r"layers\.down is \(2, 48, 32\) there and \(2, 64, 32\)"):
        restore(saved / checkpoint.LATEST, wider, mesh1)


def test_a_half_written_checkpoint_is_ignored_and_cleared(saved, trained, tiny, mesh1, tmp_path):
    folder = shutil.copytree(saved / checkpoint.LATEST, tmp_path / "c")
    partial = shutil.copytree(folder / "8", folder / "9.orbax-checkpoint-tmp")
    again, _ = restore(folder, tiny, mesh1)
    assert_same(trained, again)
    assert not partial.exists()


# Orbax leaves a coroutine behind when a read fails
@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(
    "victim",
    ["params/_METADATA", "params/manifest.ocdbt", "params/ocdbt.process_0", "train/d", "progress"],
)
def test_damage_is_one_clear_message_naming_the_folder(saved, tiny, mesh1, tmp_path, victim):
    folder = shutil.copytree(saved / checkpoint.LATEST, tmp_path / "c")
    part = folder / "8" / victim
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(UserError, match=r"c/8 cannot be read: .*remove that folder"):
        restore(folder, tiny, mesh1)


def test_damaged_policy_files_are_user_errors(saved, mesh1, tmp_path):
    broken = shutil.copytree(saved, tmp_path / "a")
    (broken / "policy" / "model.json").write_text('{"model":')
    with pytest.raises(UserError, match=r"model\.json cannot be read"):
        checkpoint.load_policy(broken, mesh1)
    torn = shutil.copytree(saved, tmp_path / "b")
    shutil.rmtree(torn / checkpoint.LATEST / "8" / "params" / "ocdbt.process_0")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_policy(torn, mesh1)


def test_load_policy(saved, trained, tiny, mesh8):
    policy = checkpoint.load_policy(saved, mesh8)
    assert_same(trained.params, policy.params)
    assert (policy.model, policy.stop_tokens, policy.step) == (tiny, (15,), 8)
    assert policy.tokenizer.get_vocab() == arithmetic.tokenizer().get_vocab()


def test_find_policy(saved, trained, tmp_path):
    run = tmp_path / "run"
    arm = shutil.copytree(saved, run / "arms" / "7")  # a name of digits is still a folder's name
    shutil.copytree(saved / checkpoint.LATEST / "8", arm / checkpoint.BEST / "3")
    shutil.copytree(saved / checkpoint.LATEST / "8", arm / checkpoint.LATEST / "10")
    (arm / checkpoint.LATEST / "12.orbax-checkpoint-tmp").mkdir()
    for given, step in {
        arm: "checkpoints/10",
        arm / "checkpoints": "checkpoints/10",
        arm / "checkpoints" / "8": "checkpoints/8",
        arm / "best": "best/3",
        arm / "best" / "3": "best/3",
    }.items():
        assert [os.fspath(p) for p in checkpoint.find_policy(given)] == [
            os.fspath(arm),
            os.fspath(arm / step),
        ]
    with pytest.raises(UserError, match=r"Its arms are: \S*/run/arms/7"):
        checkpoint.find_policy(run)
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.find_policy(arm / "checkpoints" / "11")
    with pytest.raises(UserError, match="is no checkpoint"):
        checkpoint.find_policy(tmp_path)
    shutil.rmtree(arm / checkpoint.LATEST)
    with pytest.raises(UserError, match="no finished checkpoint"):
        checkpoint.find_policy(arm)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_full_disk_while_saving_is_a_disk_error(
    saved, trained, tiny, mesh1, tmp_path, wrapped, monkeypatch
):
    """Raised where the wait is, in whatever type; the older checkpoint stays restorable."""
    folder = shutil.copytree(saved / checkpoint.LATEST, tmp_path / "c")
    checkpoints = checkpoint.open_checkpoints(folder, 2)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
    error = ValueError(f"RESOURCE_EXHAUSTED: Error writing: {full}") if wrapped else full

    def refuse(self):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.training.Checkpointer, "wait", refuse)
        with pytest.raises(DiskError, match="No space left on device") as caught:
            checkpoint.finish(checkpoints)
    assert caught.value.exit_code == 1
    checkpoint.close(checkpoints)
    assert_same(trained, restore(folder, tiny, mesh1)[0])


def test_other_errors_are_no_disk_errors(tmp_path):
    with pytest.raises(ZeroDivisionError), checkpoint.disk_errors(tmp_path):
        raise ZeroDivisionError
