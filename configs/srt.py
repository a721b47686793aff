"""SRT's recipes. `selfevolve srt NAME`; every field is an option, `selfevolve srt NAME --help`."""

from __future__ import annotations

from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.srt.recipe import BaseConfig, SRTRecipe
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.trainer import TrainerConfig


def _small_trainer(steps: int, learning_rate: float, **options) -> TrainerConfig:
    return TrainerConfig(
        steps=steps,
        prompts_per_step=32,
        samples_per_prompt=16,
        eval_samples=16,
        shared_prompt=16,
        optimizer=OptimizerConfig(learning_rate=learning_rate, weight_decay=0.0, clip_norm=None),
        rollout=RolloutConfig(slots=1024, chunk=16),
        **options,
    )


def quickstart() -> SRTRecipe:
    """Chained arithmetic with visible steps: SRT rises to where ground truth rises.

    Command: selfevolve srt quickstart
    """
    return SRTRecipe(
        trainer=_small_trainer(150, 1e-4, max_new_tokens=6, eval_every=25, save_every=50),
    )
