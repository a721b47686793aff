"""What the programs are compiled for is what a real step calls them with, and what they need is added
up as a step holds it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from selfevolve_jax import aot, roofline, sharding, step_draw, trainer
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.images import layout, load_image, preprocess
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout import decoding, prompt_images
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.state import init_params
from selfevolve_jax.tasks import arithmetic
from selfevolve_jax.trainer import TrainerConfig
from tests import tiny_vlm

TEXT = replace(tiny_vlm.MODEL, vision=None, mrope_sections=None, dtype="bfloat16")
CONFIG = TrainerConfig(
    steps=1,
    prompts_per_step=4,
    samples_per_prompt=4,
    max_new_tokens=40,
    eval_every=9,
    eval_samples=1,
    optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0),
    grpo=GRPOConfig(kl_coef=0.01, kl_in="reward", accumulate=2),
    rollout=RolloutConfig(slots=8, chunk=8),
)


def text_task():
    """Prompts of one length, so that the longest is every one."""
    task = arithmetic.load_task(arithmetic.ArithmeticConfig((8,), 0, 8, 2), 0)
    return task, max(len(row.prompt_tokens) for row in task.train), 0


def seeing_task():
    """One picture a prompt, all of one size."""
    plain = arithmetic.load_task(arithmetic.ArithmeticConfig((4,), 0, 8, 2), 0)
    picture = tiny_vlm.picture(0, 16, 24)
    rows = [tiny_vlm.with_pictures(row, picture) for row in plain.train]
    seen = [preprocess(load_image(picture), tiny_vlm.IMAGES, tiny_vlm.VISION)]
    pixels, _ = layout([seen], [rows[0].prompt_tokens], tiny_vlm.VISION)
    task = replace(plain, train=rows, images=tiny_vlm.IMAGES)
    longest = max(len(row.prompt_tokens) for row in rows)
    return task, longest, pixels.patches_RxPxC.shape[1]


class Recorder:
    """The last call of each function during the step's own rollout and update."""

    def __init__(self, patch):
        self.calls, self.on, self.patch = {}, False, patch
        self.wrap(trainer, "trainer_logprobs", "score", always=True)
        self.wrap(trainer, "update_step", "update", always=True)
        for name, program in (
            *(("prefill", "prefill"), ("admit", "admit"), ("grow", "grow")),
            ("decode_chunk", "decode"),
        ):
            self.wrap(decoding, name, program)
        self.wrap(prompt_images, "_encode", "encode")
        generate, encode = step_draw.generate, step_draw.encode_images

        def during(function):
            def call(*args, **kwargs):
                self.on = True
                try:
                    return function(*args, **kwargs)
                finally:
                    self.on = False

            return call

        patch.setattr(step_draw, "generate", during(generate))
        patch.setattr(step_draw, "encode_images", during(encode))

    def wrap(self, module, name, program, always=False):
        function = getattr(module, name)

        def call(*args, **kwargs):
            if self.on or always:
                described = jax.tree.map(described_leaf, (args, kwargs))
                # The policy's own scores come before those of the reference.
                if program != "score" or program not in self.calls:
                    self.calls[program] = described
            return function(*args, **kwargs)

        self.patch.setattr(module, name, call)


def described_leaf(x):
    if isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    if isinstance(x, np.ndarray | np.generic):
        return jax.ShapeDtypeStruct(x.shape, x.dtype)
    return x


def assert_same(real, abstract, name):
    """Shapes, dtypes and, of arrays on devices, shardings."""
    real, abstract = (jax.tree_util.tree_leaves_with_path(x) for x in (real, abstract))
    assert [path for path, _ in real] == [path for path, _ in abstract], name
    for (path, a), (_, b) in zip(real, abstract, strict=True):
        where = name + jax.tree_util.keystr(path)
        if not isinstance(a, jax.ShapeDtypeStruct):
            assert a == b, where
            continue
        assert (a.shape, a.dtype) == (b.shape, b.dtype), where
        if a.sharding is not None and b.sharding is not None and a.shape:
            assert a.sharding.is_equivalent_to(b.sharding, len(a.shape)), where


def endless(task, model, config, mesh, longest, patches):
    # No stop token is ever drawn: samples run to the limit. Nothing is evaluated, which has its own
    # shapes.
    task = replace(task, stop_tokens=(model.vocab_size,), held_out=[])
    return task, aot.Step(model, config, mesh, longest, patches, stops=1)


@pytest.fixture(scope="module")
def text(mesh8, tmp_path_factory):
    task, longest, patches = text_task()
    return recorded(task, TEXT, CONFIG, mesh8, longest, patches, tmp_path_factory)


@pytest.fixture(scope="module")
def seeing(mesh8, tmp_path_factory):
    task, longest, patches = seeing_task()
    grpo = replace(CONFIG.grpo, kl_in="loss", minibatches=2, accumulate=1)
    config = replace(CONFIG, grpo=grpo, max_new_tokens=8, train_vision=True)
    return recorded(task, tiny_vlm.MODEL, config, mesh8, longest, patches, tmp_path_factory)


def recorded(task, model, config, mesh, longest, patches, tmp_path_factory):
    task, step = endless(task, model, config, mesh, longest, patches)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        trainer.train(
            init_params(model, jax.random.key(0), mesh),
            model,
            task,
            "majority",
            config,
            seed=0,
            mesh=mesh,
            folder=tmp_path_factory.mktemp("run"),
            title="t",
        )
    return step, recorder.calls, {p.name: p for p in aot.programs(step)}


@pytest.mark.parametrize("program", ["prefill", "admit", "grow", "decode", "score", "update"])
def test_a_step_of_text_calls_what_is_compiled(text, program):
    _, calls, programs = text
    made = programs[program]
    assert_same(calls[program][0], made.args, program)
    if program == "decode":
        assert calls[program][1] == made.kwargs


def test_the_step_of_text_has_no_other_program(text):
    _, calls, programs = text
    assert calls.keys() == programs.keys()


@pytest.mark.parametrize("program", ["encode", "prefill", "admit", "decode", "score"])
def test_a_step_with_pictures_calls_what_is_compiled(seeing, program):
    _, calls, programs = seeing
    assert_same(calls[program][0], programs[program].args, program)


def test_one_of_several_minibatches_is_compiled(seeing):
    """The program has a part of the rows and one update; the trainer's has all of both."""
    step, calls, programs = seeing
    real, made = calls["update"][0], programs["update"]
    assert_same(real[0], made.args[0], "state")
    assert_same(real[1], aot.abstract_batch(step, True, step.rows), "batch")
    assert made.args[1].tokens_BxT.shape == (step.rows // 2, step.length)
    assert (made.args[6].minibatches, real[6].minibatches, made.calls) == (1, 2, 2)
    assert made.args[1].pixels is not None and real[1].pixels is not None


def test_bytes_are_those_of_a_devices_shard(mesh8):
    where = sharding.named(mesh8, ("batch", None), (8, 3), "x")
    split = jax.ShapeDtypeStruct((8, 3), np.float32, sharding=where)
    whole = jax.ShapeDtypeStruct((8, 3), np.int8, sharding=sharding.replicated(mesh8))
    assert aot.device_bytes([split, whole]) == 8 // 4 * 3 * 4 + 24


def test_what_is_held_is_what_a_real_state_holds(text, mesh8):
    """Two copies of the weights, two moments and a count of steps, as arrays on devices have them."""
    step = text[0]
    held = roofline.held(step)
    params = init_params(TEXT, jax.random.key(0), mesh8)
    mine = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    assert held.parameters == 2 * mine and held.gradients == mine
    assert 2 * mine < held.optimiser <= 2 * mine + 16  # its counts, and the step's
    assert mine // 2 <= held.cast < mine  # norms stay float32
    cache = 2 * 2 * 2 * 8 * 2  # k and v, layers, kv heads, head_dim, bfloat16
    assert held.cache == cache * (step.slots * step.capacity + 4 * 16) // 8


def test_a_refusal_of_the_compiler_is_read():
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 196.50G of 15.75G hbm. Exceeded hbm capacity by 180.75G."
    )
    assert aot.refused(said, 5) == int(196.5 * 2**30)
    assert aot.refused("Used 640.00M of 15.75G hbm", 5) == 640 * 2**20
    temporary = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(61.69G) exceeds available HBM (15.75G)."
    )
    assert aot.refused(temporary, 5) == int(61.69 * 2**30) + 5
    assert aot.refused("INTERNAL: something else", 5) is None


def test_a_program_is_compiled_and_added_up(text):
    """On the simulated devices themselves."""
    admit = text[2]["admit"]
    done = aot.compile_program(admit)
    assert done.memory is not None
    assert done.memory.arguments == aot.device_bytes(admit.args[:-1]) + 8  # the key
    assert done.needs == done.memory.peak + admit.resident
    assert aot._argument_bytes(admit) == aot.device_bytes(admit.args[:-1])
