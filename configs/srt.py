"""SRT's recipes. `selfevolve srt NAME`; every field is an option, `selfevolve srt NAME --help`."""

from __future__ import annotations

from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.srt.recipe import SRTRecipe
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
    return SRTRecipe(trainer=_small_trainer(100, 2e-4, max_new_tokens=6))


def collapse() -> SRTRecipe:
    """The same at ten times the learning rate: SRT falls into one constant answer with reward 1.00,
    while ground truth holds.

    selfevolve srt collapse
    """
    return SRTRecipe(
        trainer=_small_trainer(300, 1e-3, max_new_tokens=6), arms=("srt", "ground_truth")
    )
