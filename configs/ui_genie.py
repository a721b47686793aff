"""UI-Genie's recipes. `selfevolve ui-genie NAME`; each field is an option: `--help` lists them."""

from __future__ import annotations

from dataclasses import replace

from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.ui_genie.explore import Exploration
from selfevolve_jax.ui_genie.recipe import AgentTraining, RewardData, UIGenieRecipe
from selfevolve_jax.ui_genie.reward_model import RewardTraining

# Of one step, and of two to six.
TASKS = (
    *("click-test-2", "click-button", "click-link", "click-dialog-2", "click-tab", "click-widget"),
    *("focus-text-2", "click-option", "click-checkboxes", "click-button-sequence"),
    *("enter-text", "click-collapsible", "enter-password", "login-user"),
)


def quickstart() -> UIGenieRecipe:
    """A tiny Qwen2.5-VL, made here, operates 14 small web pages in a real Chromium. From demonstrations
    of a few seeds it goes through three rounds of exploring, judging and learning.

    selfevolve ui-genie quickstart
    """

    # Of a rate that does not depend on the length, all trainings of the agent share one step.
    constant = OptimizerConfig(learning_rate=3e-4, warmup_steps=5, weight_decay=0.0)
    falling = replace(constant, learning_rate=5e-4, schedule="cosine")
    return UIGenieRecipe(
        tasks=TASKS,
        style="short",
        demonstrations=4,
        starts=4,
        held_out=6,
        chunk=84,  # what is held out is tested in one
        exploration=Exploration(mode="best_of_n", candidates=4, max_steps=6, earlier=0),
        max_new_tokens=40,
        rollout=RolloutConfig(slots=512, chunk=40),
        agent=AgentTraining(batch=32, epochs=5, optimizer=constant),
        reward=RewardTraining(batch=16, epochs=4, optimizer=falling),
        data=RewardData(continuations=3, failures=12),
    )
