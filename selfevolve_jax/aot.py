"""A training step's programs, compiled ahead of time for devices that need not be there.

The jitted functions are those that `trainer` and `rollout.engine` call; what they are called with is
described by shape, dtype and sharding alone, for the largest sizes that a recipe can come to: prompts
of the longest length, samples that run to the limit. tests/test_aot.py holds these descriptions against
the arrays of a real step.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from models import decoder
from models.attention import choose
from models.config import ModelConfig
from models.shared import unconstrained
from models.vision import Pixels
from selfevolve_jax import sharding
from selfevolve_jax.collectives import Traffic, traffic
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.grpo.update import score, update_step
from selfevolve_jax.optimizer import decay_mask, make_optimizer
from selfevolve_jax.rollout import decoding, prompt_images
from selfevolve_jax.rollout.buckets import bucket
from selfevolve_jax.rollout.prompt_images import FEATURE_AXES, PATCHES_AT_ONCE
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.state import abstract_state, placed
from selfevolve_jax.trainable import split, trainable_mask, trains_vision
from selfevolve_jax.trainer_config import TrainerConfig, check_batch


@dataclass(frozen=True, eq=False)
class Step:
    """One training step of one arm. prompt: tokens of the longest prompt, those of its images among
    them. patches: places for patches of a prompt's images, 0 where it has none. stops: stop tokens."""

    model: ModelConfig
    trainer: TrainerConfig
    mesh: Any  # Mesh; AbstractMesh for GPUs, which are estimated only
    prompt: int
    patches: int = 0
    stops: int = 2

    def __post_init__(self) -> None:
        check_batch(self.trainer, self.mesh)

    @cached_property
    def attention(self) -> str:
        """How the update reads whole sequences (models.attention)."""
        abstract = isinstance(self.mesh, AbstractMesh)
        platform = "gpu" if abstract else self.mesh.devices.flat[0].platform
        return choose(self.model, self.length, platform)

    @cached_property
    def ways(self) -> int:
        return sharding.batch_ways(self.mesh)

    def rounded(self, n: int) -> int:
        return -(-n // self.ways) * self.ways

    # What the trainer lays a batch out as (grpo.batch.build_batch).
    @cached_property
    def samples(self) -> int:
        return self.trainer.prompts_per_step * self.trainer.samples_per_prompt

    @cached_property
    def rows(self) -> int:
        c = self.trainer
        rows = self.samples // c.shared_prompt
        pieces = self.ways * c.grpo.accumulate * c.grpo.minibatches
        return -(-(bucket(rows, 1) if c.pack else rows) // pieces) * pieces

    @cached_property
    def length(self) -> int:
        return bucket(self.prompt + self.trainer.shared_prompt * self.trainer.max_new_tokens)

    # What the sampler holds (rollout.engine.generate).
    @cached_property
    def slots(self) -> int:
        return self.rounded(min(self.trainer.rollout.slots, bucket(self.samples, 8)))

    @cached_property
    def buffer_rows(self) -> int:
        return self.rounded(bucket(-(-self.slots // self.trainer.samples_per_prompt), 1))

    @cached_property
    def prefilled(self) -> int:
        return bucket(max(self.prompt - 1, 1))

    @cached_property
    def chunk(self) -> int:
        return min(self.trainer.rollout.chunk, bucket(self.trainer.max_new_tokens, 8))

    @cached_property
    def capacities(self) -> tuple[int, ...]:
        """Of the slots' cache, from what it begins with to its fullest: it grows before a chunk that it
        has no room for."""
        new = self.trainer.max_new_tokens
        most = bucket(self.prefilled + 1 + new)
        sizes = [min(bucket(self.prefilled + self.chunk), most)]
        for done in range(0, new, self.chunk):
            needed = self.prompt + done + self.chunk
            if needed > sizes[-1] and sizes[-1] < most:
                sizes.append(min(bucket(needed), most))
        return tuple(sizes)

    @property
    def capacity(self) -> int:
        return self.capacities[-1]

    @cached_property
    def refills(self) -> int:
        """How often all slots are filled."""
        return -(-self.samples // self.slots)

    @cached_property
    def trainable(self) -> tuple[bool, ...]:
        return trainable_mask(self.model, self.trainer.train_vision)

    @cached_property
    def tower_trained(self) -> bool:
        return bool(self.patches) and trains_vision(self.model, self.trainer.train_vision)

    @cached_property
    def scorings(self) -> int:
        """Passes before the update: the policy's own where they are needed, and a reference's."""
        grpo = self.trainer.grpo
        return int(grpo.scored_first) + int(grpo.kl_coef > 0)


@dataclass(frozen=True)
class Program:
    """One jitted function and what it is called with. calls: how often in a step (of the decode loop:
    chunks). resident: bytes a device that are held meanwhile and are no argument of it."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: int
    resident: int


@dataclass(frozen=True)
class Memory:
    """Bytes a device of one program, as its compiler laid it out."""

    arguments: int
    outputs: int  # those that take an argument's place are not counted again
    temporary: int
    code: int

    @property
    def peak(self) -> int:
        return self.arguments + self.outputs + self.temporary + self.code


@dataclass(frozen=True)
class Compiled:
    """memory is None where the compiler refused: then `needs` is what it said it would take."""

    program: Program
    needs: int  # bytes a device, what is resident among them
    memory: Memory | None
    traffic: dict[str, Traffic]  # of one call; of the decode loop, of one token
    seconds: float


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device, exactly (no tiling or padding)."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def abstract_training_state(step: Step) -> Any:
    c = step.trainer
    tx = _optimizer(step)
    taught = c.teacher_decay is not None
    return abstract_state(step.model, tx, step.mesh, step.trainable, taught)


def sampling_params(step: Step, params: decoder.Params) -> decoder.Params:
    """What the sampler reads: the parameters, cast once."""
    if not decoding.casts(step.model):
        return params
    cast = jax.eval_shape(partial(decoding.cast_once, dtype=step.model.dtype), params)
    return jax.tree.map(placed, cast, jax.tree.map(lambda leaf: leaf.sharding, params))


def abstract_slots(step: Step, capacity: int) -> decoding.Slots:
    slots = jax.eval_shape(
        partial(decoding.empty_slots, step.slots, capacity, step.model, unconstrained)
    )
    small = jax.tree.map(lambda leaf: _batched(step, leaf), replace(slots, cache=None))
    return replace(small, cache=jax.tree.map(lambda leaf: _cached(step, leaf), slots.cache))


def abstract_buffer(step: Step) -> decoder.Cache:
    """The cache of the prompts that wait to be copied into slots."""
    shape = partial(decoder.empty_cache, step.model, step.buffer_rows, step.prefilled)
    return jax.tree.map(lambda leaf: _cached(step, leaf), jax.eval_shape(shape))


def abstract_features(step: Step, rows: int) -> Any:
    vision = step.model.vision
    assert vision is not None
    return _named(step, (rows, step.patches // vision.merge**2, step.model.d_model),
                  step.model.dtype, FEATURE_AXES)  # fmt: skip


def abstract_pixels(step: Step, rows: int) -> Pixels:
    vision = step.model.vision
    assert vision is not None
    P = step.patches
    return Pixels(
        _rows(step, (rows, P, vision.patch_dim), jnp.float32),
        _rows(step, (rows, P, 2), jnp.int32),
        _rows(step, (rows, P), jnp.int32),
    )


def abstract_batch(step: Step, scored: bool, rows: int) -> Batch:
    """scored: with the log-probs of the policy and of the reference, where the update needs them."""
    grpo, shape = step.trainer.grpo, (rows, step.length)
    whole, real = (_rows(step, shape, dtype) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(
        tokens_BxT=whole,
        positions=_rows(step, (*shape, 3), jnp.int32) if step.patches else whole,
        segment_ids_BxT=whole,
        branch_ids_BxT=whole,
        sequence_ids_BxT=whole,
        source_BxT=whole,
        rollout_logprobs_BxT=real,
        old_logprobs_BxT=real if scored and grpo.scored_first else None,
        ref_logprobs_BxT=real if scored and grpo.kl_coef > 0 else None,
        image_index_BxT=whole if step.patches else None,
    )
    if not step.patches:
        return batch
    if step.tower_trained:
        return replace(batch, pixels=abstract_pixels(step, rows))
    return replace(batch, features_BxUxD=abstract_features(step, rows))


def programs(step: Step) -> list[Program]:
    """In the order in which a step runs them; `calls` are those of a step in which every sample comes
    to the limit."""
    c, model, mesh = step.trainer, step.model, step.mesh
    constrain = sharding.constrainer(mesh)
    state = abstract_training_state(step)
    cast = sampling_params(step, state.params)
    held = device_bytes(state)
    # The weights that the arm began with stay: the next arm's start, and this one's reference.
    frozen = held + device_bytes(state.params)
    weights = device_bytes(cast) if decoding.casts(model) else 0
    slots, buffer = abstract_slots(step, step.capacity), abstract_buffer(step)
    first = abstract_slots(step, step.capacities[0])
    buffered = device_bytes(buffer)
    made: list[Program] = []

    seen, shown = None, 0
    if step.patches:
        prompts = step.rounded(c.prompts_per_step)
        features = abstract_features(step, prompts)
        R = step.buffer_rows
        seen = (
            features,
            _rows(step, (R,), jnp.int32),
            _rows(step, (R, step.prefilled), jnp.int32),
            _rows(step, (R, step.prefilled, 3), jnp.int32),
        )
        shown = device_bytes(features)
        at_once = min(prompts, max(PATCHES_AT_ONCE // step.patches, 1) * step.ways)
        pixels = abstract_pixels(step, at_once)
        args = (state.params.vision, pixels, model, constrain)
        # The features of all pieces are there at the end, besides their sum.
        rest = frozen - device_bytes(state.params.vision) + 2 * shown
        made.append(
            Program("encode", prompt_images._encode, args, {}, -(-prompts // at_once), rest)
        )

    R, P, S = step.buffer_rows, step.prefilled, step.slots
    prefill = (cast, _rows(step, (R, P), jnp.int32), seen, model, constrain)
    again = buffered if step.refills > 1 else 0  # the buffer before, until this one takes its name
    outside = frozen if decoding.casts(model) else frozen - device_bytes(state.params)
    made.append(
        Program(
            "prefill",
            decoding.prefill,
            prefill,
            {},
            step.refills,
            outside + device_bytes(slots if step.refills > 1 else first) + again,
        )
    )
    numbers = (_rows(step, (S,), jnp.int32),) * 6
    key = jax.eval_shape(lambda: jax.random.key(0))
    made.append(
        Program(
            "admit",
            decoding.admit,
            (slots, buffer, *numbers, key),
            {},
            step.refills,
            frozen + weights + shown,
        )
    )
    if len(step.capacities) > 1:  # the last time is the largest
        smaller = abstract_slots(step, step.capacities[-2])
        args, kwargs = (smaller,), {"capacity": step.capacity}
        rest = frozen + weights + shown + buffered
        made.append(Program("grow", decoding.grow, args, kwargs, 1, rest))
    everywhere = sharding.replicated(mesh)
    values = (
        Sampling(*(jax.ShapeDtypeStruct((), d, sharding=everywhere) for d in _SAMPLING)),
        jax.ShapeDtypeStruct((step.stops,), jnp.int32, sharding=everywhere),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
    )
    options = {"steps": step.chunk, "cfg": model, "constrain": constrain, "stats": False}
    made.append(
        Program(
            "decode",
            decoding.decode_chunk,
            (cast, slots, *values),
            options,
            step.refills * -(-c.max_new_tokens // step.chunk),
            outside + buffered + shown,
        )
    )
    temperature = jax.ShapeDtypeStruct((), jnp.float32)
    if step.scorings:
        args = (
            state.params,
            abstract_batch(step, False, step.rows),
            temperature,
            model,
            c.grpo,
            constrain,
        )
        rest = frozen - device_bytes(state.params) + shown
        made.append(Program("score", score, args, {}, step.scorings, rest))
    # The trainer's program runs its minibatches one after another, and takes as many times as long to
    # compile: here it is that of one of them, the rest of the batch beside it.
    judged, n = (c.prompts_per_step, c.samples_per_prompt), c.grpo.minibatches
    batch = abstract_batch(step, True, step.rows // n)
    others = device_bytes(abstract_batch(step, True, step.rows)) - device_bytes(batch)
    args = (
        state,
        batch,
        jax.ShapeDtypeStruct(judged, jnp.float32, sharding=everywhere),
        jax.ShapeDtypeStruct(judged, jnp.bool_, sharding=everywhere),
        temperature,
        model,
        replace(c.grpo, minibatches=1),
        _optimizer(step),
        c.max_new_tokens,
        constrain,
        step.trainable,
    )
    rest = frozen - held + shown + others
    made.append(Program("update", update_step, args, {}, n, rest))
    return made


_SAMPLING = (np.float32, np.float32, np.int32, np.float32)


def compile_program(program: Program) -> Compiled:
    """Compiles; what does not fit is returned with what it needs. Raises what else goes wrong."""
    began = time.monotonic()
    lowered = program.function.lower(*program.args, **program.kwargs)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needs = refused(str(error), _argument_bytes(program))
        if needs is None:
            raise
        seconds = time.monotonic() - began
        return Compiled(program, needs + program.resident, None, {}, seconds)
    stats = compiled.memory_analysis()
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
    )
    sent = traffic(compiled.as_text())
    seconds = time.monotonic() - began
    return Compiled(program, memory.peak + program.resident, memory, sent, seconds)


def refused(message: str, arguments: int) -> int | None:
    """Bytes that a program would have needed, from the compiler's message; None for another error. Of
    what is too large by its temporaries alone the compiler (libtpu 0.0.42) tells no more, and the
    arguments are added to them."""
    size = r"([\d.]+)([KMGT]?)"
    used = re.search(rf"Used {size} of [\d.]+[KMGT]? hbm", message)
    temporary = re.search(rf"HLO temporaries \({size}\) exceeds available HBM", message)
    said = used or temporary
    if not said:
        return None
    told = int(float(said[1]) * 1024 ** " KMGT".index(said[2] or " "))
    return told if used else told + arguments


def _argument_bytes(program: Program) -> int:
    """On a device; the key's few bytes, which have no place in the mesh, are left out."""
    leaves = jax.tree.leaves((program.args, program.kwargs))
    return device_bytes([one for one in leaves if getattr(one, "sharding", None) is not None])


def _optimizer(step: Step) -> Any:
    c = step.trainer
    specs = split(decoder.abstract_params(step.model), step.trainable)[0]
    return make_optimizer(c.optimizer, c.steps * c.grpo.minibatches, decay_mask(specs))


def _named(step: Step, shape: tuple[int, ...], dtype: Any, axes: tuple) -> jax.ShapeDtypeStruct:
    where = sharding.named(step.mesh, axes, shape, "a step's array")
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)


def _rows(step: Step, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return _named(step, shape, dtype, ("batch",) + (None,) * (len(shape) - 1))


def _batched(step: Step, leaf: Any) -> jax.ShapeDtypeStruct:
    axes = ("batch",) + (None,) * (len(leaf.shape) - 1)
    return placed(leaf, sharding.named(step.mesh, axes, leaf.shape, "slots"))


def _cached(step: Step, leaf: Any) -> jax.ShapeDtypeStruct:
    return placed(leaf, sharding.named(step.mesh, decoder.CACHE_AXES, leaf.shape, "cache"))
