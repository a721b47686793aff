"""Rollouts on devices of their own, and one step behind the policy: what is drawn by whom, that both
go on at once, and that a kill changes nothing."""

import os
import signal
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax._src.array import ArrayImpl

from models.vision import Pixels
from selfevolve_jax import checkpoint, keys, run_dir, sharding, step_draw, trainer
from selfevolve_jax.early_stop import EarlyStop
from selfevolve_jax.endings import Interrupted
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import Batch, add_images
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.metrics import read_metrics
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig, generate
from selfevolve_jax.rollout.prompt_images import PromptImages
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.tasks.base import batch_at
from selfevolve_jax.trainer import TrainerConfig
from tests.test_cures import same_end
from tests.test_resume import arrays
from tests.tiny_text import MODEL, init_params, load_task

CONFIG = TrainerConfig(
    steps=5,
    prompts_per_step=4,
    samples_per_prompt=4,
    max_new_tokens=5,
    eval_every=5,
    eval_samples=2,
    save_every=1,
    keep=6,
    alarm="off",
    # A step changes the policy by more than any rounding (the judge `rent` trains on every sample).
    grpo=GRPOConfig(entropy_coef=0.1, importance_cap=2.0),
    optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0, clip_norm=None),
    sampling=Sampling(temperature=0.8),
    rollout=RolloutConfig(slots=16, chunk=16),
)
OFF = replace(CONFIG, one_step_off=True)


@pytest.fixture(scope="module")
def task():
    return load_task()


@pytest.fixture(scope="module")
def params(mesh1):
    return init_params(mesh1)


@pytest.fixture(scope="module")
def train(task, params, mesh1):
    def run(folder, config, judge="rent", task=task, mesh=mesh1, rollout_mesh=None):
        start = jax.device_put(jax.device_get(params), sharding.replicated(mesh))
        return trainer.train(
            start, MODEL, task, judge, config,
            seed=0, mesh=mesh, folder=epath.Path(folder), title="t", rollout_mesh=rollout_mesh,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def off(train, tmp_path_factory):
    """(folder, result) of an undisturbed run, one step off."""
    folder = tmp_path_factory.mktemp("off") / "run"
    return folder, train(folder, OFF)


def texts_of(folder):
    """For each step the texts of its samples, row by row."""
    rows = {s: run_dir.read_samples(p) for s, p in run_dir.sample_steps(folder).items()}
    return {s: [[x["text"] for x in row["samples"]] for row in rows[s]] for s in rows}


def numbers(folder):
    """The log without clocks and compilations."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "throughput/", "compile/"))}
        for line in read_metrics(folder / run_dir.METRICS)
    ]


def test_a_batch_is_drawn_by_the_weights_that_the_step_before_began_with(off, task, mesh1, params):
    """Each step's texts are those of generate(weights two updates back, the step's own key)."""
    logged = texts_of(off[0])
    by = {0: params} | {
        s: checkpoint.load_policy(off[0] / checkpoint.LATEST / str(s), mesh1).params
        for s in (1, 2, 3)
    }
    for step in range(1, 6):
        rows = batch_at(task.train, 0, 4 * (step - 1), 4)

        def drawn(weights, step=step, rows=rows):
            samples = generate(
                weights,
                [row.prompt_tokens for row in rows],
                [row.id for row in rows],
                4,
                keys.step_key(0, keys.ROLLOUT, step),
                OFF.sampling,
                max_new_tokens=5,
                stop_tokens=task.stop_tokens,
                cfg=MODEL,
                mesh=mesh1,
                config=OFF.rollout,
            )
            return trainer.evaluate.decode(task.tokenizer, samples)

        assert logged[step] == drawn(by[max(step - 2, 0)])
        if step in (2, 3, 4):  # the policy itself would have said something else
            assert logged[step] != drawn(by[step - 1])


def test_tokens_a_second_are_those_of_what_was_drawn_meanwhile(off):
    """The first step draws for itself and for the second, the last one nothing."""
    lines = [x for x in read_metrics(off[0] / run_dir.METRICS) if "throughput/tokens_per_s" in x]
    drawn = [round(x["throughput/tokens_per_s"] * x["time/step"]) for x in lines]
    mine = [round(16 * x["response/length_mean"]) for x in lines]  # 4 rows of 4 samples
    assert drawn == [mine[0] + mine[1], *mine[2:], 0]


def test_staleness_is_told_and_seen_in_the_samplers_gap(off, train, tmp_path):
    """Step 1 has no older policy. From step 2 on sampler and trainer differ by an update, which is far
    more than the rounding between them that an on-policy step shows, the temperature included."""
    lines = numbers(off[0])[1:]
    assert [line["policy/staleness"] for line in lines] == [0, 1, 1, 1, 1]
    train(tmp_path, CONFIG)
    on = numbers(tmp_path)[1:]
    assert all("policy/staleness" not in line for line in on)
    assert max(line["policy/sampler_gap"] for line in [*on, lines[0]]) < 1e-5
    assert min(line["policy/sampler_gap"] for line in lines[1:]) > 1e-2
    assert {k: v for k, v in lines[0].items() if k != "policy/staleness"} == on[0]


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_correction_is_of_the_policy_that_the_step_begins_with(
    train, task, tmp_path, monkeypatch, mesh1, minibatches
):
    """What `update_step` is given: the sampler's log-probs are those of θ(t−2), and the old ones, where
    it uses any, those of θ(t−1); both by a pass of their own, at the temperature of the samples."""
    given, update = [], trainer.update_step

    def watched(state, batch, *args):
        given.append(jax.device_get((state.params, batch)))
        return update(state, batch, *args)

    monkeypatch.setattr(trainer, "update_step", watched)
    grpo = replace(OFF.grpo, minibatches=minibatches)
    train(tmp_path, replace(OFF, steps=3, eval_every=3, save_every=3, grpo=grpo))
    constrain, temperature = sharding.constrainer(mesh1), np.float32(OFF.sampling.temperature)
    for t in (1, 2):
        (older, _), (current, batch) = given[t - 1], given[t]
        response = batch.sequence_ids_BxT >= 0

        def scored(weights, batch=batch, response=response):
            logp = trainer.trainer_logprobs(weights, batch, temperature, MODEL, grpo, constrain)
            return np.asarray(logp)[response]

        sampler, own = scored(older), scored(current)
        np.testing.assert_allclose(batch.rollout_logprobs_BxT[response], sampler, atol=1e-5)
        assert np.abs(own - sampler).max() > 0.05
        if minibatches > 1:
            np.testing.assert_allclose(batch.old_logprobs_BxT[response], own, atol=1e-6)


def killed(run, monkeypatch, folder, config, step, how):
    """Runs until the batch of `step` is to be drawn: killed outright, or by a polite signal."""
    draw = step_draw.draw

    def acting(drawing, now, *rest):
        if now == step and how == "crash":
            raise KeyboardInterrupt
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(drawing, now, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(step_draw, "draw", acting)
        with pytest.raises(KeyboardInterrupt if how == "crash" else Interrupted):
            run(folder, config)


CASES = {
    "plain": (OFF, "majority"),
    "filter and teacher": (
        replace(OFF, teacher_decay=0.5, vote_threshold=0.3, resample=2),
        "majority",
    ),
    "minibatches and a reference": (
        replace(OFF, grpo=replace(OFF.grpo, minibatches=2, kl_coef=0.1)),
        "majority",
    ),
    "statistics": (OFF, "rent"),
}
SLOW = ("minibatches and a reference", "statistics")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES]
)
def test_killed_and_resumed_it_ends_the_same(name, train, tmp_path, monkeypatch):
    """Killed as step 4's batch is to be drawn, which is in step 3; and by a signal in step 2, which
    saves there. What was drawn ahead comes from the checkpoint: only later steps are sampled again."""
    config, judge = CASES[name]

    def run(folder, config):
        return train(folder, config, judge)

    config = replace(config, save_every=2)
    whole = tmp_path / "whole", run(tmp_path / "whole", config)
    draws = []

    def counted(*args, **kwargs):
        draws.append(1)
        return generate(*args, **kwargs)

    for step, how in ((4, "crash"), (3, "signal")):
        killed(run, monkeypatch, tmp_path / how, config, step, how)
        with monkeypatch.context() as patch:
            patch.setattr(step_draw, "generate", counted)
            draws.clear()
            same_end(run, config, tmp_path / how, whole)
        if name == "plain":  # steps 4 and 5; that of step 3 was in the checkpoint of step 2
            assert len(draws) == 2
    if "filter" in name:
        assert max(line["resample/rounds"] for line in numbers(whole[0])[1:]) == 2


def test_a_checkpoint_holds_the_samples_of_the_next_step_and_no_others(off):
    logged = texts_of(off[0])
    for step in range(1, 5):
        stored = arrays(off[0] / checkpoint.LATEST / str(step))
        name = "progress['ahead']['samples'][0]['lengths_RxG']"
        rows = run_dir.read_samples(run_dir.sample_steps(off[0])[step + 1])
        lengths = [[x["length"] for x in row["samples"]] for row in rows]
        assert stored[name].tolist() == lengths
        assert stored["progress['position']"] == 4 * step
    last = arrays(off[0] / checkpoint.LATEST / "5")
    assert not any("ahead" in key for key in last) and len(logged) == 5


def test_a_run_that_is_ended_early_has_nothing_ahead(train, tmp_path, monkeypatch):
    """By early stopping, with the best policy, and again after a kill."""
    config = replace(
        OFF, eval_every=1, save_every=5, early_stop=EarlyStop(patience=1, min_delta=0.9)
    )
    result = train(tmp_path / "whole", config)
    assert result.ended and result.ended["why"] == "early_stop" and result.ended["step"] == 1
    assert not any("ahead" in k for k in arrays(tmp_path / "whole" / checkpoint.LATEST / "1"))
    assert list(run_dir.sample_steps(tmp_path / "whole")) == [1]
    killed(train, monkeypatch, tmp_path / "killed", config, 2, "crash")  # drawn in step 1
    same_end(train, config, tmp_path / "killed", (tmp_path / "whole", result))


@pytest.fixture(scope="module")
def four():
    """Two meshes of four devices each."""
    devices = jax.devices()
    return [sharding.make_mesh(MeshConfig(fsdp=2), part) for part in (devices[:4], devices[4:])]


def test_rollouts_on_four_other_devices_change_no_bit(train, four, tmp_path):
    config = replace(CONFIG, steps=2, eval_every=2)
    shared = train(tmp_path / "shared", config, mesh=four[0])
    apart = train(tmp_path / "apart", config, mesh=four[0], rollout_mesh=four[1])
    jax.tree.map(np.testing.assert_array_equal, shared.params, apart.params)
    assert numbers(tmp_path / "apart") == numbers(tmp_path / "shared")
    assert texts_of(tmp_path / "apart") == texts_of(tmp_path / "shared")
    assert apart.params.embed.sharding.mesh == four[0]


@pytest.mark.slow
def test_rollouts_in_another_layout_change_no_sample(train, four, tmp_path):
    """And figures to rounding. Parameters are no measure of it, as Adam divides by what it rounds."""
    config = replace(CONFIG, steps=2, eval_every=2)
    train(tmp_path / "shared", config, mesh=four[0])
    split = sharding.make_mesh(MeshConfig(tensor=2), jax.devices()[4:])
    train(tmp_path / "split", config, mesh=four[0], rollout_mesh=split)
    assert texts_of(tmp_path / "split") == texts_of(tmp_path / "shared")
    lines = (numbers(tmp_path / run) for run in ("split", "shared"))
    for line, expected in zip(*lines, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_one_step_off_apart_is_one_step_off_shared(train, four, tmp_path):
    config = replace(OFF, steps=3, eval_every=3)
    shared = train(tmp_path / "shared", config, mesh=four[0])
    apart = train(tmp_path / "apart", config, mesh=four[0], rollout_mesh=four[1])
    jax.tree.map(np.testing.assert_array_equal, shared.params, apart.params)
    assert numbers(tmp_path / "apart") == numbers(tmp_path / "shared")


def test_the_next_rollout_is_done_while_the_update_is_held_up(train, tmp_path, monkeypatch):
    """The results of every update wait, on their devices, for a door that opens when the next step's
    rollout is over. A loop that waited for them first, for their weights above all, would stand before
    the door until it gives up. (A simulated device runs beside others only where it is one: the CPU
    client starts programs of several devices one after the other.)"""
    devices = jax.devices()
    mesh = sharding.make_mesh(MeshConfig(), devices[:2])
    alone = sharding.make_mesh(MeshConfig(), devices[7:])
    over, waited = threading.Semaphore(0), []
    update, draw = trainer.update_step, step_draw.draw

    def door(_):
        waited.append(over.acquire(timeout=30))
        return np.float32(0)

    @jax.jit
    def hold(state):
        nothing = jax.pure_callback(
            door, jax.ShapeDtypeStruct((), jnp.float32), state.params.final_norm.sum()
        )
        return jax.tree.map(lambda x: x + nothing.astype(x.dtype), state)

    def late(state, *args):
        state, metrics = update(state, *args)
        return hold(state), metrics

    def drawn(drawing, step, *args):
        result = draw(drawing, step, *args)
        if step > 1:  # that of step 1 comes before any update
            over.release()
        if step == 3:
            over.release()  # nothing is drawn after the last update
        return result

    config = replace(OFF, steps=3, eval_every=3, save_every=3)
    wanted = train(tmp_path / "free", config, mesh=mesh, rollout_mesh=alone)
    monkeypatch.setattr(trainer, "update_step", late)
    monkeypatch.setattr(step_draw, "draw", drawn)
    got = train(tmp_path / "held", config, mesh=mesh, rollout_mesh=alone)
    assert waited == [True] * 3
    jax.tree.map(np.testing.assert_array_equal, got.params, wanted.params)


LAYOUTS = [
    (MeshConfig(data=4), MeshConfig(data=4), "embed"),  # whole to whole
    (MeshConfig(fsdp=4), MeshConfig(fsdp=4), "embed"),  # pieces alike
    (MeshConfig(fsdp=4), MeshConfig(data=4), "embed"),  # joined
    (MeshConfig(data=4), MeshConfig(tensor=4), "embed"),  # cut
    (MeshConfig(fsdp=2, tensor=2), MeshConfig(data=2, tensor=2), "embed"),  # both
]


@pytest.mark.parametrize(("source", "target", "name"), LAYOUTS)
def test_weights_are_resharded_without_the_host(source, target, name, monkeypatch):
    """No array is read by the host (transfer guards see nothing of that on CPU devices), every piece
    is where it belongs, and the values are the same."""
    devices = jax.devices()
    there = sharding.make_mesh(target, devices[4:])
    value = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    mine = sharding.named(
        sharding.make_mesh(source, devices[:4]), ("vocab", "embed"), value.shape, name
    )
    wanted = sharding.named(there, ("vocab", "embed"), value.shape, name)
    x = jax.device_put(value, mine)

    def refuse(self, *args):
        raise AssertionError("read by the host")

    with monkeypatch.context() as patch:
        patch.setattr(ArrayImpl, "_value", property(refuse))
        patch.setattr(ArrayImpl, "__array__", refuse)
        with pytest.raises(AssertionError):
            np.asarray(x)
        moved = sharding.reshard({"w": x}, {"w": wanted})["w"]
        moved.block_until_ready()
    assert moved.sharding == wanted and moved.devices() == set(devices[4:])
    np.testing.assert_array_equal(np.asarray(moved), value)
    for shard in moved.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), value[shard.index])


def test_what_is_frozen_moves_once_and_a_copy_is_one(params, mesh1):
    """On a shared mesh one step off copies, as the update gives the buffers up; on-policy does not."""
    leaves = jax.tree.leaves(params)
    mask = tuple(i % 2 == 0 for i in range(len(leaves)))
    alone = sharding.make_mesh(MeshConfig(), jax.devices()[7:])
    for rollouts, ahead in ((alone, False), (mesh1, True)):
        place = step_draw.placer(MODEL, mask, mesh1, rollouts, ahead)
        first, second = (jax.tree.leaves(place(params)) for _ in range(2))
        for own, x, one, other in zip(mask, leaves, first, second, strict=True):
            assert (one is not other) == own
            assert one.devices() == set(rollouts.devices.flat)
            assert one.unsafe_buffer_pointer() != x.unsafe_buffer_pointer()
            np.testing.assert_array_equal(np.asarray(other), np.asarray(x))
    assert step_draw.placer(MODEL, mask, mesh1, mesh1, False)(params) is params


def test_images_encoded_by_the_rollouts_reach_the_training_devices(four):
    """3 prompts, padded to the rollouts' 8 rows, in 4 copies each: 12 rows over four devices."""
    here, there = four[0], sharding.make_mesh(MeshConfig(), jax.devices()[4:])
    features = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    nothing = np.full((12, 5), -1, np.int32)
    batch = Batch(*[nothing] * 7, image_index_BxT=nothing)
    for mesh in (there, here, sharding.make_mesh(MeshConfig(), jax.devices()[7:])):
        placed = sharding.put_batch(features, mesh)
        seen = PromptImages(Pixels(*[np.zeros(1)] * 3), placed, [], [], [])
        got = add_images(batch, seen, 3, 4, False, here).features_BxUxD
        assert got.devices() == set(here.devices.flat)
        np.testing.assert_array_equal(np.asarray(got), np.repeat(features[:3], 4, axis=0))
        assert got.addressable_shards[0].data.shape == (3, 2, 3)


def test_devices_for_rollouts_are_the_last_ones():
    mesh, rollouts = sharding.make_meshes(MeshConfig(fsdp=2, rollout=4, rollout_tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    assert rollouts is not None
    assert dict(rollouts.shape) == {"data": 2, "fsdp": 1, "tensor": 2}
    ids = [d.id for d in jax.devices()]
    assert sorted(d.id for d in mesh.devices.flat) == ids[:4]
    assert sorted(d.id for d in rollouts.devices.flat) == ids[4:]
    assert sharding.make_meshes(MeshConfig())[1] is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MeshConfig(rollout=8), r"mesh\.rollout=8.* of 8 device\(s\), 1 to 7"),
        (MeshConfig(rollout=-1), r"mesh\.rollout=-1"),
        (MeshConfig(rollout_tensor=2), r"mesh\.rollout=0, mesh\.rollout_tensor=2"),
        (MeshConfig(rollout=3, rollout_tensor=2), r"rollout=3.*rollout_tensor=2.*divisor"),
        (
            MeshConfig(fsdp=8, rollout=2),
            r"mesh\.rollout=2.* leaves 6 devices to train: .*mesh\.fsdp=8",
        ),
    ],
)
def test_devices_that_cannot_be_split_are_refused(config, said):
    with pytest.raises(UserError, match=said):
        sharding.make_meshes(config)


def test_what_does_not_train_on_rollouts_refuses_to_split():
    with pytest.raises(UserError, match=r"mesh\.rollout=2.* Leave both out here"):
        sharding.make_mesh(MeshConfig(rollout=2))


def test_one_step_off_asks_for_the_correction():
    with pytest.raises(UserError, match=r"one_step_off=True .*importance_cap=None .*=2\.0"):
        replace(OFF, grpo=GRPOConfig())


def test_weights_that_do_not_fit_the_rollouts_are_refused_before_they_are_read():
    from selfevolve_jax.starting_point import check_rollout

    mesh = sharding.make_mesh(MeshConfig(tensor=8))
    with pytest.raises(UserError, match=r"mesh\.rollout_tensor .*heads.* size 4.*tensor=8"):
        check_rollout(MODEL, mesh)
    check_rollout(MODEL, None)
