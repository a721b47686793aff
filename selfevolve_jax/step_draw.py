"""What a step trains on: rows of the stream, sampled, judged and filled up; and by whose weights.

On-policy, the samples of step t are drawn with the weights that step t begins with. One step off
(`trainer.one_step_off`; the asynchronous RLHF of arXiv 2410.18252), they are drawn with those that
step t − 1 began with, so that on devices of their own they are drawn and judged while the update of
step t − 1 is under way. The loop then does, in step t,

    weights that step t begins with → rollout devices
    update t, dispatched, on the batch that was drawn in step t − 1
    draw t + 1, with the weights above

A checkpoint of step t therefore holds the samples of step t + 1, as host arrays. The older weights
would do as well, since a draw is a function of (weights, seed, step, position), but are larger by far,
and would draw the same bits on the same devices only. All else of a draw is worked out again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from models import decoder
from models.config import ModelConfig
from selfevolve_jax import evaluate, sharding
from selfevolve_jax.judges.base import Judge
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.paired import with_views
from selfevolve_jax.keys import ROLLOUT, TEACHER, step_key
from selfevolve_jax.resample import Judged, fill
from selfevolve_jax.rollout.engine import Samples, generate
from selfevolve_jax.rollout.prompt_images import PromptImages, encode_images
from selfevolve_jax.step_log import Clock
from selfevolve_jax.tasks.base import Task, batch_at
from selfevolve_jax.teacher import teacher_vote
from selfevolve_jax.trainable import Mask, join, split
from selfevolve_jax.trainer_config import TrainerConfig


@dataclass(frozen=True)
class Drawing:
    """What every draw of a run has in common. mesh, device: of the rollouts; device is None where
    they share the training mesh. taught: a teacher votes. tower_trained: the teacher and the policy
    see differently. paired, stats: what the judge asks for."""

    task: Task
    model: ModelConfig
    config: TrainerConfig
    seed: int
    judge: Judge
    needs_gold: bool
    equivalence: Equivalence
    mesh: Mesh
    device: Any
    taught: bool
    tower_trained: bool
    paired: bool
    stats: bool


@dataclass(frozen=True)
class Weights:
    """Parameters on the rollout mesh. updates: how many steps of training they have behind them."""

    policy: decoder.Params
    teacher: decoder.Params | None
    updates: int


@dataclass(frozen=True)
class Drawn:
    """A step's batch, as `fill` gives it, and what it shows. updates: those of the weights that drew
    it. position: that of the stream after it. samples: all that was drawn for it, in order."""

    kept: Judged
    dropped: Judged | None
    rounds: int
    seen: PromptImages | None
    updates: int
    position: int
    samples: Sequence[Samples]


def draw(
    drawing: Drawing,
    step: int,
    position: int,
    weights: Weights,
    clock: Clock,
    stored: dict[str, Any] | None = None,
) -> Drawn:
    """The batch of `step`, whose rows begin at `position` of the stream. stored: what `to_store` gave
    of this very draw before the run was killed, and is taken in place of new samples."""
    task, config, paired = drawing.task, drawing.config, drawing.paired
    model, mesh = drawing.model, drawing.mesh
    again = deque(Samples(**arrays) for arrays in stored["samples"]) if stored else deque()
    samples_drawn: list[Samples] = []
    seen: PromptImages | None = None

    def judged(n: int, round: int) -> Judged:
        """The next n rows of the stream, sampled and judged; round counts from 0 in each step."""
        nonlocal position, seen
        problems = n // 2 if paired else n
        rows = batch_at(task.train, drawing.seed, position, problems)
        position += problems
        rows = with_views(rows) if paired else rows
        seen = encode_images(weights.policy, rows, task.images, model, mesh)

        def sample(params: decoder.Params, purpose: int, seen: PromptImages | None) -> Samples:
            if again and len(again[0].lengths_RxG) == len(rows):
                return again.popleft()
            again.clear()  # a comparison that timed out in one life alone may ask for other rows
            key = step_key(drawing.seed, purpose, step)
            return generate(
                params,
                [row.prompt_tokens for row in rows],
                [row.id for row in rows],
                config.samples_per_prompt,
                jax.random.fold_in(key, round) if round else key,
                config.sampling,
                max_new_tokens=config.max_new_tokens,
                stop_tokens=task.stop_tokens,
                cfg=model,
                mesh=mesh,
                config=config.rollout,
                images=seen,
                stats=drawing.stats,
            )

        samples = sample(weights.policy, ROLLOUT, seen)
        samples_drawn.append(samples)
        texts, teacher_texts = evaluate.decode(task.tokenizer, samples), []
        clock.lap("rollout")
        if drawing.taught:
            assert weights.teacher is not None
            shown = seen
            if drawing.tower_trained:
                shown = encode_images(weights.teacher, rows, task.images, model, mesh)
            slow = sample(weights.teacher, TEACHER, shown)
            samples_drawn.append(slow)
            teacher_texts = evaluate.decode(task.tokenizer, slow)
            clock.lap("teacher")
            verdict = teacher_vote(
                texts,
                teacher_texts,
                task.answer,
                drawing.equivalence,
                threshold=config.vote_threshold,
                trained=config.trained_per_prompt,
            )
        else:
            shown_rows = [r if drawing.needs_gold else r.hide_gold() for r in rows]
            verdict = drawing.judge(shown_rows, texts, step, samples)
        clock.lap("judge")
        return Judged(rows, samples, texts, verdict, teacher_texts)

    with jax.default_device(drawing.device):  # keys too: elsewhere they would wait for the update
        first = judged(config.prompts_per_step, 0)
        kept, dropped, rounds = fill(first, judged, config.resample)
        if dropped is not None:
            seen = encode_images(weights.policy, kept.rows, task.images, model, mesh)
    updates = stored["updates"] if stored else weights.updates
    return Drawn(kept, dropped, rounds, seen, updates, position, samples_drawn)


def to_store(drawn: Drawn) -> dict[str, Any]:
    """What a checkpoint keeps of a draw: {"updates": int, "samples": arrays by name}."""
    named = [{f.name: getattr(s, f.name) for f in fields(s)} for s in drawn.samples]
    return {
        "updates": drawn.updates,
        "samples": [{k: v for k, v in one.items() if v is not None} for one in named],
    }


def placer(
    model: ModelConfig, trainable: Mask, mesh: Mesh, rollout_mesh: Mesh, ahead: bool
) -> Callable[[decoder.Params], decoder.Params]:
    """How parameters of the training mesh reach the rollouts: resharded to their mesh, device to
    device; or, on a shared mesh, as they are, and `ahead` as a copy, since the update that comes
    before the rollout gives their buffers up. What is frozen moves once."""
    if rollout_mesh is mesh and not ahead:
        return lambda params: params
    there = split(sharding.tree_shardings(decoder.abstract_params(model), rollout_mesh), trainable)
    frozen_there: Any = None

    def move(tree: Any, shardings: Any) -> Any:
        return _copied(tree) if rollout_mesh is mesh else sharding.reshard(tree, shardings)

    def place(params: decoder.Params) -> decoder.Params:
        nonlocal frozen_there
        mine, frozen = split(params, trainable)
        if frozen_there is None:
            frozen_there = move(frozen, there[1])
        return join(move(mine, there[0]), frozen_there)

    return place


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
