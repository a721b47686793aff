"""MM-UPT's recipes. `selfevolve mm-upt NAME`; each field is an option: `selfevolve mm-upt NAME --help`.

Published scores are averages over MathVision, MathVerse, MathVista and We-Math, graded with a judge
(arXiv 2505.22453); figures graded by rules alone lie some 4 points lower.
"""

from __future__ import annotations

from dataclasses import replace

from selfevolve_jax.mm_upt.recipe import GRPO, PUBLISHED, BaseConfig, MMUPTRecipe
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.tasks import easy_vqa as vqa
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.easy_vqa import EasyVQAConfig
from selfevolve_jax.tasks.pictures import PicturesConfig
from selfevolve_jax.trainer_config import TrainerConfig

# The paper's prompt: the question, then this.
SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."


def _small_trainer(steps: int, learning_rate: float) -> TrainerConfig:
    """MM-UPT's step on 32 questions x 10 samples. T = 1, as the base's errors are those of sampling: at
    the paper's 0.7 most of them would be gone before training begins."""
    return TrainerConfig(
        steps=steps,
        prompts_per_step=32,
        samples_per_prompt=10,
        shared_prompt=10,
        max_new_tokens=12,
        eval_every=20,
        eval_samples=10,
        save_every=20,
        optimizer=OptimizerConfig(learning_rate=learning_rate, weight_decay=0.0),
        grpo=GRPO,
        rollout=RolloutConfig(slots=1024, chunk=12),
    )


def quickstart() -> MMUPTRecipe:
    """A tiny Qwen2.5-VL, made here, reads drawings: counts, clocks, bar charts, angles, shapes. It
    trains on its own votes, beside supervised GRPO, its votes on questions that it wrote itself, and
    random rewards. Held-out mean, five seeds: .56 to .85, .86, .83 and .54 (docs/mm_upt.md).

    selfevolve mm-upt quickstart
    """
    return MMUPTRecipe(
        trainer=_small_trainer(40, 5e-5),
        arms=("mm_upt", "supervised", "direct", "random"),
    )


def failure() -> MMUPTRecipe:
    """Faint drawings, which the warm start's labels misread by one on two of three: the vote is wrong
    more often than right. Training on it hurts; leaving out every question whose samples do not all
    agree, nearly all of them, avoids that. Without angles, whose wrong answers are of many kinds.
    Held-out mean, five seeds: .34 to .18, with labels .75, filtered .33 (docs/mm_upt.md).

    selfevolve mm-upt failure
    """
    return MMUPTRecipe(
        task=PicturesConfig(kinds=("count", "clock", "bars", "shape"), hard=1.0),
        policy=BaseConfig(hard=1.0, glance=0.0, misread=0.65, clean=0.5, steps=2000),
        trainer=_small_trainer(40, 5e-5),
        filter_below=0.95,
        arms=("mm_upt", "supervised", "filter"),
    )


def easy_vqa() -> MMUPTRecipe:
    """easy-VQA, pictures and questions that nobody here made (extra easy-vqa): shapes and colours,
    without the questions answered by yes or no. Held-out mean, three seeds: .50 to .63, .67, .64 and
    .50; without labels the majority falls from .70 to .65 (docs/mm_upt.md).

    selfevolve mm-upt easy-vqa
    """
    model = replace(BaseConfig().model, vocab_size=vqa.VOCABULARY, vision=vqa.VISION)
    return MMUPTRecipe(
        task=EasyVQAConfig(),
        policy=BaseConfig(
            model=model, drawings=1600, noise=0.25, glance=0.0, clean=0.5, first_kind=0, steps=400
        ),
        trainer=_small_trainer(40, 5e-5),
        arms=("mm_upt", "supervised", "direct", "random"),
    )


def _published(model: str, task: DataConfig, steps: int) -> MMUPTRecipe:
    """The paper's settings: 512 questions x 10 samples, four updates a step, 15 epochs, T = 0.7, images
    of 262,144 to 1,204,224 pixels, the vision tower trained (or --trainer.train-vision False)."""
    return MMUPTRecipe(
        task=task,
        policy=CheckpointConfig(model, dtype="bfloat16", remat="full"),
        trainer=replace(
            PUBLISHED,
            steps=steps,
            eval_every=10,
            eval_samples=10,
            save_every=5,
            grpo=replace(GRPO, accumulate=160),  # one sequence of 4,096 tokens at a time on 8 chips
            rollout=RolloutConfig(slots=512, chunk=128),
        ),
        min_pixels=262_144,
        max_pixels=1_204_224,
        mesh=MeshConfig(data=1, fsdp=-1),
        arms=("mm_upt",),
    )


def _data(path: str) -> DataConfig:
    """A training set with the columns that the paper's configuration names for all: problem, answer,
    images. Geometry3K's card has them; MMR1's and the authors' copy of GeoQA have NOT been looked into.
    Geometry3K's test split, 601 questions, is held out, as it is there."""
    return DataConfig(
        path=path,
        held_out_path="hiyouga/geometry3k",
        question_column="problem",
        answer_column="answer",
        image_column="images",
        chat=True,
        suffix=SUFFIX,
        max_prompt_tokens=2048,
    )


_7B, _3B = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct"
_72B = "Qwen/Qwen2.5-VL-72B-Instruct"
# 15 epochs of 512 questions: 2,101, about 8,000 and about 7,000 of them.
_GEOMETRY3K = (_data("hiyouga/geometry3k"), 61)
_GEOQA = (_data("WaltonFuture/GEOQA_R1V_Train_8K"), 234)
_MMR1 = (_data("MMR1/MMR1-Math-RL-Data-v0"), 205)


def qwen2_5_vl_7b_geometry3k() -> MMUPTRecipe:
    """Qwen2.5-VL-7B on Geometry3K's 2,101 questions, answers masked.

    selfevolve mm-upt qwen2-5-vl-7b-geometry3k

    Hardware: 8.3B parameters with float32 masters, Adam and a reference take 20 bytes each, 166 GB:
    8 GPUs of 80 GB or a v5p-16 hold them. Hours (paper): about 10 on 8 A800. Not run here. Score
    (paper, average): base 49.47, MM-UPT 51.23, supervised GRPO 53.22; on the model's own questions,
    --arms in_context 51.00, --arms direct 52.32.
    """
    return _published(_7B, *_GEOMETRY3K)


def qwen2_5_vl_7b_geoqa() -> MMUPTRecipe:
    """Qwen2.5-VL-7B on GeoQA's 8,000 questions, answers masked.

    selfevolve mm-upt qwen2-5-vl-7b-geoqa

    Hardware: as for Geometry3K. Hours: none are published; four times the questions. Not run here.
    Score (paper, average): base 49.47, MM-UPT 51.97, supervised GRPO 51.65; on the model's own
    questions, --arms in_context 52.20, --arms direct 52.67.
    """
    return _published(_7B, *_GEOQA)


def qwen2_5_vl_7b_mmr1() -> MMUPTRecipe:
    """Qwen2.5-VL-7B on MMR1's 7,000 questions, answers masked: the paper's main run.

    selfevolve mm-upt qwen2-5-vl-7b-mmr1

    Hardware: as for Geometry3K. Hours: none are published; over three times the questions. The paper's
    released model is that of step 80. Not run here. Score (paper, average): base 49.47, MM-UPT 53.17,
    supervised GRPO 53.17; MathVista 66.30 to 72.90; on the model's own questions (averages),
    --arms in_context 52.94, --arms direct 52.16.
    """
    return _published(_7B, *_MMR1)


def qwen2_5_vl_3b_geometry3k() -> MMUPTRecipe:
    """Qwen2.5-VL-3B on Geometry3K.

    selfevolve mm-upt qwen2-5-vl-3b-geometry3k

    Hardware: 3.8B parameters at 20 bytes each, 75 GB: 2 GPUs of 80 GB hold them. Hours: none are
    published. Not run here. Score (paper, average): base 39.00, MM-UPT 41.72.
    """
    return _published(_3B, *_GEOMETRY3K)


def qwen2_5_vl_3b_geoqa() -> MMUPTRecipe:
    """Qwen2.5-VL-3B on GeoQA. Hardware: as for Geometry3K. Hours and score: none are published.

    selfevolve mm-upt qwen2-5-vl-3b-geoqa
    """
    return _published(_3B, *_GEOQA)


def qwen2_5_vl_3b_mmr1() -> MMUPTRecipe:
    """Qwen2.5-VL-3B on MMR1. Hardware: as for Geometry3K. Hours and score: none are published.

    selfevolve mm-upt qwen2-5-vl-3b-mmr1
    """
    return _published(_3B, *_MMR1)


def qwen2_5_vl_72b_mmr1() -> MMUPTRecipe:
    """Qwen2.5-VL-72B on MMR1: the method at a size that the paper has not.

    selfevolve mm-upt qwen2-5-vl-72b-mmr1 --mesh.tensor 8

    Hardware: 73.4B parameters at 20 bytes each, 1.47 TB: a v5p-256 (docs/scale.md has its figures); 32
    GPUs of 80 GB hold that and little else. Hours and score: none are published. Not run here.
    """
    return _published(_72B, *_MMR1)
