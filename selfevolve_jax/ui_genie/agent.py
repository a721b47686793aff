"""The agent: a policy that writes the next action for a view, and what it learns from trajectories.

Both go through contract.agent_question, so an agent is trained on the very prompts that it is asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from selfevolve_jax import sft
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.batch import Batch
from selfevolve_jax.images import load_image, preprocess
from selfevolve_jax.pretrained import source
from selfevolve_jax.rollout.buckets import doubled
from selfevolve_jax.rollout.engine import RolloutConfig, Samples, generate
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.starting_point import CheckpointConfig, load_policy
from selfevolve_jax.tasks.base import Row
from selfevolve_jax.ui_genie import contract, trajectory
from selfevolve_jax.ui_genie.actions import Action, Frame
from selfevolve_jax.ui_genie.android_control import MAX_PIXELS, resized
from selfevolve_jax.ui_genie.contract import Style, View
from selfevolve_jax.ui_genie.trajectory import Trajectory

# Keys apart from the trainer's and from sampling_job's.
_PROPOSE, _ORDER, _WRITE = 104, 105, 106
# Answers that share a copy of their prompt. More would make rows of very different lengths.
_SHARED = 8


def load_agent(config: CheckpointConfig, mesh: Mesh) -> tuple[Policy, Callable[[Frame], Frame]]:
    """A policy for the screenshots of phones, and the frame that it sees a screen in. Where its images
    may be larger than the paper's (Qwen2.5-VL's own may), they are made no larger than those. UserError
    for one that reads text only, before its weights are read."""
    if source.read_model(config.path).vision is None:
        raise UserError(
            f"checkpoint {config.path} reads text only, and a GUI agent looks at screenshots. Fix: a "
            "vision-language checkpoint, such as Qwen/Qwen2.5-VL-3B-Instruct."
        )
    policy = load_policy(config, mesh)
    vision, images = policy.model.vision, policy.images
    if vision is None or images is None:
        raise UserError(f"checkpoint {config.path} does not say how its images are made ready.")
    images = replace(images, max_pixels=min(images.max_pixels, MAX_PIXELS))
    frame_of = resized(images.min_pixels, images.max_pixels, vision.unit)
    return replace(policy, images=images), frame_of


def propose(
    policy: Policy,
    views: Sequence[View],
    ids: Sequence[int],
    n: int,
    *,
    style: Style,
    sampling: Sampling,
    seed: int,
    mesh: Mesh,
    rollout: RolloutConfig,
    max_new_tokens: int,
) -> list[list[str]]:
    """n texts for every view; at temperature 0 and n = 1 the likeliest.

    The samples of a view depend on (seed, its id, sample index) and the view, not on the batch: ids are
    31-bit numbers. A text is all that was drawn up to the stop token, special tokens included, as
    actions.parse is to see what was really written; one cut off by max_new_tokens just ends there.

    Views are taken so many at a time that every sample has a slot, and padded to a few sizes, so that
    searches that narrow compile nothing new. UserError for what contract.tokens_of refuses.
    """
    if len(ids) != len(views):
        raise ValueError(f"{len(ids)} ids for {len(views)} views")

    def row(i: int) -> Row:
        shown = contract.agent_screenshots(views[i])
        return Row(ids[i], "", prompt_tokens(policy, views[i], style), images=shown)

    key = jax.random.fold_in(jax.random.key(seed), _PROPOSE)
    return _drawn_texts(policy, row, len(views), n, key, sampling, mesh, rollout, max_new_tokens)


def write(
    policy: Policy,
    questions: Sequence[str],
    ids: Sequence[int],
    *,
    sampling: Sampling,
    seed: int,
    mesh: Mesh,
    rollout: RolloutConfig,
    max_new_tokens: int,
) -> list[str]:
    """A text for every question, which shows no screen; else as `propose`."""

    def row(i: int) -> Row:
        encode = (policy.tokenizer, policy.model.vision, policy.images)
        return Row(ids[i], "", contract.tokens_of(*encode, None, questions[i], ()))

    key = jax.random.fold_in(jax.random.key(seed), _WRITE)
    drawn = _drawn_texts(
        policy, row, len(questions), 1, key, sampling, mesh, rollout, max_new_tokens
    )
    return [text for (text,) in drawn]


def _drawn_texts(
    policy: Policy,
    row: Callable[[int], Row],
    count: int,
    n: int,
    key: jax.Array,
    sampling: Sampling,
    mesh: Mesh,
    rollout: RolloutConfig,
    max_new_tokens: int,
) -> list[list[str]]:
    """n texts for each of rows 0 to count - 1."""
    at_once = max(rollout.slots // n, 1)
    texts: list[list[str]] = []
    for start in range(0, count, at_once):
        rows = [row(i) for i in range(start, min(start + at_once, count))]
        # Fillers show nothing and are never sampled from; they keep the tower's shapes few.
        filler = Row(0, "", (policy.stop_tokens[0],))
        # Searches narrow: sizes that double are few, and a slot that is empty costs little.
        room = doubled(len(rows) * n, 16)
        padded = rows + [filler] * (doubled(len(rows), 16) - len(rows))
        drawn = generate(
            policy.params,
            [row.prompt_tokens for row in rows],
            [row.id for row in rows],
            n,
            key,
            sampling,
            max_new_tokens=max_new_tokens,
            stop_tokens=policy.stop_tokens,
            cfg=policy.model,
            mesh=mesh,
            config=rollout,
            room=room,
            images=encode_images(policy.params, padded, policy.images, policy.model, mesh),
        )
        texts += _texts(policy.tokenizer, drawn)
    return texts


def prompt_tokens(policy: Policy, view: View, style: Style) -> tuple[int, ...]:
    """What the policy goes on from."""
    system, question = contract.agent_question(view, style)
    shown = contract.agent_screenshots(view)
    return contract.tokens_of(
        policy.tokenizer, policy.model.vision, policy.images, system, question, shown
    )


def response_tokens(policy: Policy, action: Action, style: Style) -> tuple[int, ...]:
    """What the policy should write: the action and the token that ends a turn (the tokenizer's EOS
    where that is a stop token, else the first stop token)."""
    eos, stops = policy.tokenizer.eos_token_id, policy.stop_tokens
    end = eos if eos in stops else stops[0]
    return (*contract.candidate_tokens(policy.tokenizer, action, style), end)


@dataclass(frozen=True)
class Example:
    """A view and the actions that are right there, which share its prompt. view: makes it when it is
    needed, as the screenshots of a data set need not fit in memory."""

    view: Callable[[], View]
    actions: tuple[Action, ...]


def examples(
    trajectories: Sequence[Trajectory], screenshots_folder: str | os.PathLike[str]
) -> list[Example]:
    """Every step of the trajectories that is an action, in their order; which trajectories are worth
    learning from is the caller's choice. Steps of the same goal, history and screen are one example,
    up to 8 of them."""
    groups: dict[Any, list[Action]] = {}
    views: dict[Any, Callable[[], View]] = {}
    for one in trajectories:
        for i, step in enumerate(one.steps):
            if step.action is None:
                continue
            history = tuple(done.action_desc for done in trajectory.done_before(one, i))
            same = (one.goal, history, one.frame, step.screenshot, step.elements)
            groups.setdefault(same, []).append(step.action)
            views.setdefault(same, partial(trajectory.view_at, one, i, screenshots_folder, 0))
    return [
        Example(views[same], tuple(actions[at : at + _SHARED]))
        for same, actions in groups.items()
        for at in range(0, len(actions), _SHARED)
    ]


def sft_steps(count: int, size: int, epochs: float = 1.0) -> int:
    """Batches of `size` examples that go over `count` examples so many times, at least once one."""
    return max(math.ceil(count * epochs / size), 1)


def sft_batches(
    policy: Policy,
    learnt: Sequence[Example],
    style: Style,
    *,
    size: int,
    steps: int,
    seed: int,
    pieces: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """Batches `start` to `steps` for sft.supervised_step, on the host: `size` views, each the prompt of
    an example with its answers, none of which sees another. The loss is on the answers alone. Views
    share rows (`sft.packed_batch`), whose number is a multiple of `pieces`: the mesh's batch ways times
    those that a gradient is summed from.

    The order is an endless stream of permutations by (seed, epoch), so a batch is a function of its
    number and a run goes on at any. UserError where there is nothing to learn from, or a screenshot is
    missing. Nothing is filtered out, and nothing is cut short.
    """
    vision, images = policy.model.vision, policy.images
    if not learnt:
        raise UserError(
            "agent SFT has no steps to learn from: no trajectory passed the filter, or none has an "
            "action; fix: more starts or candidates, or leave the training out this round"
        )
    if vision is None or images is None:
        raise UserError("agent SFT needs a vision-language policy; fix: such as Qwen2.5-VL")
    for batch in range(start, steps):
        rows, pictures = [], []
        for example in _drawn(learnt, seed, batch, size):
            view = example.view()
            answers = [response_tokens(policy, action, style) for action in example.actions]
            rows.append((prompt_tokens(policy, view, style), [((), answer) for answer in answers]))
            shown = contract.agent_screenshots(view)
            pictures.append([preprocess(load_image(png), images, vision) for png in shown])
        yield sft.packed_batch(rows, size, pieces, pictures, vision)


def _drawn(learnt: Sequence[Example], seed: int, batch: int, size: int) -> list[Example]:
    """The examples of a batch: places [batch · size, (batch + 1) · size) of the stream."""
    picked: list[Example] = []
    while len(picked) < size:
        epoch, offset = divmod(batch * size + len(picked), len(learnt))
        order = np.random.default_rng([seed, _ORDER, epoch]).permutation(len(learnt))
        picked += [learnt[i] for i in order[offset : offset + size - len(picked)]]
    return picked


def _texts(tokenizer: Any, drawn: Samples) -> list[list[str]]:
    """R lists of n texts without their stop tokens. evaluate.decode drops every special token, which
    here would mend a call that has one inside."""
    R, n, _ = drawn.tokens_RxGxM.shape
    ends = (drawn.lengths_RxG - drawn.stopped_RxG).reshape(-1)
    flat = drawn.tokens_RxGxM.reshape(R * n, -1)
    texts = tokenizer.batch_decode(
        [tokens[:end] for tokens, end in zip(flat, ends, strict=True)],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return [texts[r * n : (r + 1) * n] for r in range(R)]
