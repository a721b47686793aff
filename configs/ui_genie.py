"""UI-Genie's recipes. `selfevolve ui-genie NAME`; each field is an option: `--help` lists them."""

from __future__ import annotations

from dataclasses import replace

from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.ui_genie.explore import Exploration
from selfevolve_jax.ui_genie.recipe import AgentTraining, RewardData, UIGenieRecipe
from selfevolve_jax.ui_genie.reward_model import RewardTraining

DEMONSTRATED = (
    *("click-link", "click-option", "click-checkboxes"),
    *("click-button-sequence", "click-collapsible", "enter-text"),
)
# Left to the rounds.
NEW_TASKS = (
    *("click-test", "click-test-2", "click-button", "click-dialog", "click-tab"),
    *("click-color", "click-widget", "focus-text", "focus-text-2", "navigate-tree"),
)


def quickstart() -> UIGenieRecipe:
    """A tiny Qwen2.5-VL, made here, operates small web pages in a real Chromium. From demonstrations of
    6 tasks on a few seeds it goes through three rounds of exploring 10 others, judging and learning.

    selfevolve ui-genie quickstart
    """

    falling = OptimizerConfig(
        learning_rate=5e-4, schedule="cosine", warmup_steps=5, weight_decay=0.0
    )
    return UIGenieRecipe(
        tasks=(*DEMONSTRATED, *NEW_TASKS),
        new_tasks=NEW_TASKS,
        style="short",
        demonstrations=4,
        starts=8,
        held_out=10,
        chunk=160,  # what is held out is tested in one
        exploration=Exploration(mode="best_of_n", candidates=4, max_steps=6, named=True, earlier=0),
        max_new_tokens=40,
        rollout=RolloutConfig(slots=512, chunk=40),
        agent=AgentTraining(batch=32, steps=64, from_first=True, optimizer=falling),
        # At the agent's rate it unlearns what the base knows of judging.
        reward=RewardTraining(batch=16, steps=32, optimizer=replace(falling, learning_rate=2e-4)),
        data=RewardData(continuations=3, failures=12),
    )
