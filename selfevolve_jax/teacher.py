"""A slow teacher: a moving average of the policy that votes in its place.

Labels then move more slowly than what is trained on them (Co-rewarding-II, arXiv 2508.00410; the mean
teacher of arXiv 1703.01780). Of the average only what is trained is kept, in float32, in the state and
so in every checkpoint. The teacher samples its own answers to the prompts; their vote labels the
policy's samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from models.decoder import Params
from selfevolve_jax.judges.base import Verdict
from selfevolve_jax.judges.equivalence import Equivalence
from selfevolve_jax.judges.tally import equal_to, tally, verdict
from selfevolve_jax.state import TrainState
from selfevolve_jax.tasks.base import AnswerSpec
from selfevolve_jax.trainable import Mask, join, split


@partial(jax.jit, static_argnames="trainable", donate_argnames="teacher")
def _moved(teacher, params, decay, trainable: Mask):
    mine = split(params, trainable)[0]
    return jax.tree.map(lambda t, p: decay * t + (1 - decay) * p.astype(jnp.float32), teacher, mine)


def follow(state: TrainState, decay: float, trainable: Mask) -> TrainState:
    """θ' ← d·θ' + (1 − d)·θ, in float32. The old teacher's buffers are given up."""
    moved = _moved(state.teacher, state.params, np.float32(decay), trainable)
    return replace(state, teacher=moved)


def teacher_params(state: TrainState, trainable: Mask) -> Params:
    """The teacher as parameters of the policy's own dtypes; what is frozen is shared."""
    mine, frozen = split(state.params, trainable)
    return join(jax.tree.map(lambda t, p: t.astype(p.dtype), state.teacher, mine), frozen)


def teacher_vote(
    texts: Sequence[Sequence[str]],
    teacher_texts: Sequence[Sequence[str]],
    spec: AnswerSpec,
    equivalence: Equivalence,
    *,
    threshold: float,
    trained: int | None,
) -> Verdict:
    """Reward 1 for a policy's sample that equals the winner of the teacher's vote, else 0.

    Votes, pseudo-labels and the majority fraction, which `threshold` compares with, are the
    teacher's; a row of which it had no parsable answer leaves the loss. answers are the policy's.
    """
    labels, own = tally(teacher_texts, spec, equivalence), tally(texts, spec, equivalence)
    before = equivalence.timeouts
    right = equal_to(own.answers, labels.winners, equivalence)
    fraction_R = labels.majority_fraction_R
    judged = verdict(
        own,
        np.asarray(right, bool).reshape(own.won_RxG.shape),
        keep_R=(fraction_R > 0) & (fraction_R >= threshold),
        trained=trained,
        pseudo_labels=labels.winners,
        timeouts=labels.timeouts + equivalence.timeouts - before,
    )
    return replace(judged, votes=labels.votes, majority_fraction_R=fraction_R.astype(np.float32))
