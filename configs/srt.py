"""SRT's recipes. `selfevolve srt NAME`; every field is an option, `selfevolve srt NAME --help`."""

from __future__ import annotations

from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.srt.recipe import BaseConfig, SRTRecipe
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.trainer import TrainerConfig


def _small_trainer(steps: int, learning_rate: float, max_new_tokens: int) -> TrainerConfig:
    """RLOO on 32 prompts x 16 samples, Adam without decay or clipping, no KL: minutes on two cores."""
    return TrainerConfig(
        steps=steps,
        prompts_per_step=32,
        samples_per_prompt=16,
        shared_prompt=16,
        max_new_tokens=max_new_tokens,
        eval_every=25,
        eval_samples=16,
        save_every=50,
        optimizer=OptimizerConfig(learning_rate=learning_rate, weight_decay=0.0, clip_norm=None),
        rollout=RolloutConfig(slots=1024, chunk=16),
    )


def quickstart() -> SRTRecipe:
    """Chained arithmetic with visible steps: SRT rises to where ground truth rises.

    selfevolve srt quickstart
    """
    return SRTRecipe(trainer=_small_trainer(150, 1e-4, max_new_tokens=6))


def collapse() -> SRTRecipe:
    """The same at ten times the learning rate: SRT falls into one constant answer with reward 1.00,
    while ground truth holds.

    selfevolve srt collapse
    """
    return SRTRecipe(
        trainer=_small_trainer(300, 1e-3, max_new_tokens=6), arms=("srt", "ground_truth")
    )


def harder_level() -> SRTRecipe:
    """Warm start on chains of 2 to 4 numbers, SRT on chains of 6: greedy accuracy itself rises.

    The base has never seen the length: it stops too early or too late, and stumbles over the first
    step, whose operand stands further away than ever before. Those errors scatter, so the vote is
    right more often than a sample is.

    selfevolve srt harder-level
    """
    base = BaseConfig(
        numbers=(2, 3, 4),
        noise=0.1,
        steps=600,
        batch=128,
        optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=0.0, clip_norm=None),
    )
    return SRTRecipe(
        task=ArithmeticConfig(numbers=(6,), width=6),
        policy=base,
        trainer=_small_trainer(100, 1e-4, max_new_tokens=12),
    )
