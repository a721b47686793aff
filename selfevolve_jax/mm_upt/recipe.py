"""Everything that defines an MM-UPT run, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.config import ModelConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.filters import FilterConfig
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.mm_upt.arms import ARMS
from selfevolve_jax.mm_upt.drawn import Drawn, module
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.sampling import Sampling, check_sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.easy_vqa import EasyVQAConfig
from selfevolve_jax.tasks.pictures import PicturesConfig
from selfevolve_jax.trainer_config import TrainerConfig

# MM-UPT's step (arXiv 2505.22453 and the configuration of its code): GRPO with advantages by the
# standard deviation, k3 KL in the loss, four optimiser steps a batch.
GRPO = GRPOConfig(
    advantage="grpo",
    clip_low=0.2,
    clip_high=0.3,
    dual_clip=3.0,
    kl_coef=0.01,
    kl_estimator="k3",
    kl_in="loss",
    minibatches=4,
)
# The whole of its settings: 512 prompts x 10 samples at temperature 0.7, AdamW at 1e-6, the vision
# tower trained. Steps depend on the data set: 15 epochs.
PUBLISHED = TrainerConfig(
    prompts_per_step=512,
    samples_per_prompt=10,
    max_new_tokens=2048,
    train_vision=True,
    sampling=Sampling(temperature=0.7, top_p=0.99),
    optimizer=OptimizerConfig(learning_rate=1e-6, weight_decay=0.01, clip_norm=1.0),
    grpo=GRPO,
)


@dataclass(frozen=True)
class BaseConfig:
    """A base policy that is made on the spot: a tiny model of the Qwen2.5-VL architecture, and
    supervised learning from noisy labels of its task.

    drawings: how many pictures it learns from, each asked about again and again. noise: probability
      that a step is replaced by a random value, glance that there are no steps, and misread that the
      first reading of a faint picture is one too many, in the labels of the last part of the steps.
    clean: the first part of the steps, whose labels are right: a model of this size learns to look
      before it learns to err. first_kind: so many steps show the task's first kind alone.
    hard: the part of the drawings that is faint.
    asking: the part of the examples that teach it to write questions (DIRECT, IN_CONTEXT).
    batch: pictures a step. row_tokens: of a picture and as many examples about it as fit.
    """

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            vocab_size=pictures.VOCABULARY,
            d_model=96,
            n_layers=3,
            n_heads=4,
            n_kv_heads=2,
            head_dim=24,
            d_ff=192,
            qkv_bias=True,
            mrope_sections=(4, 4, 4),
            vision=pictures.VISION,
            unroll=3,
        )
    )
    drawings: int = 12_000
    noise: float = 0.03
    glance: float = 0.52
    misread: float = 0.7
    clean: float = 0.8
    first_kind: int = 220
    hard: float = 0.0
    asking: float = 0.15
    steps: int = 1600
    batch: int = 16
    row_tokens: int = 104
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=50,
            end_factor=0.05,
            weight_decay=0.0,
        )
    )

    def __post_init__(self) -> None:
        for name in ("noise", "glance", "misread", "clean", "hard", "asking"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"policy.{name}={getattr(self, name)} must be in [0, 1].")
        for name in ("drawings", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"policy.{name}={getattr(self, name)} must be at least 1.")
        vision = self.model.vision
        if vision is None or vision.image_token != pictures.IMAGE_TOKEN:
            raise UserError(
                "policy.model.vision must be a vision tower with image_token="
                f"{pictures.IMAGE_TOKEN}, the id of {pictures.SHOWN!r}'s middle in the pictures task's "
                f"tokenizer, and is {vision}."
            )


@dataclass(frozen=True)
class QuestionsConfig:
    """The questions that the base policy writes for the arms `direct` and `in_context`, before any
    training.

    per_image: texts a prompt. images: only the first so many training rows are written from, all if
    None. max_new_tokens: of a text; those of the trainer if None. sampling: of the texts; the trainer's
    is that of answers. vote_low, vote_high: the base answers the written questions too, as often as a
    training step does, and those whose majority fraction lies outside are dropped; without both there
    is no such vote. filters: what else is dropped.
    """

    per_image: int = 1
    images: int | None = None
    max_new_tokens: int | None = None
    vote_low: float | None = None
    vote_high: float | None = None
    sampling: Sampling = field(default_factory=Sampling)
    filters: FilterConfig = field(default_factory=FilterConfig)

    def __post_init__(self) -> None:
        for name in ("per_image", "images", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"questions.{name}={value} must be at least 1.")
        low, high = self.votes or (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"questions.vote_low={self.vote_low} and questions.vote_high={self.vote_high}: give "
                "0 <= low <= high <= 1, such as 0.3 and 0.95."
            )
        check_sampling(self.sampling)
        if self.sampling.temperature == 0 and self.per_image > 1:
            raise UserError(
                f"questions.sampling.temperature=0 writes one question questions.per_image="
                f"{self.per_image} times. Use 1."
            )

    @property
    def votes(self) -> tuple[float, float] | None:
        """The lowest and the highest majority fraction that stays; None where no vote is asked for."""
        if self.vote_low is None and self.vote_high is None:
            return None
        return self.vote_low or 0.0, 1.0 if self.vote_high is None else self.vote_high


@dataclass(frozen=True)
class MMUPTRecipe:
    """One MM-UPT experiment: questions about pictures, a policy to start from, and arms (`arms.ARMS`).

    min_pixels, max_pixels: the area that a picture is resized into; as the policy has it if None.
    filter_below: the majority fraction under which the arm `filter` leaves a question out.
    questions: what the arms `direct` and `in_context` train on.
    """

    task: Drawn | DataConfig = field(default_factory=PicturesConfig)
    policy: BaseConfig | CheckpointConfig = field(default_factory=BaseConfig)
    trainer: TrainerConfig = PUBLISHED
    min_pixels: int | None = None
    max_pixels: int | None = None
    filter_below: float = 0.6
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    arms: tuple[str, ...] = ("mm_upt", "random")
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise UserError(f"arms={' '.join(self.arms)}: choose from {', '.join(ARMS)}.")
        if len(set(self.arms)) < len(self.arms):
            raise UserError(f"arms={' '.join(self.arms)}: an arm is named twice.")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if not 0 < self.filter_below <= 1:
            raise UserError(f"filter_below={self.filter_below} must be above 0 and at most 1.")
        drawn = None if isinstance(self.task, DataConfig) else module(self.task)
        if isinstance(self.policy, BaseConfig):
            if drawn is None:
                raise UserError(
                    "policy is a base made for a task of drawn pictures, but the task is a data set. "
                    "Give a trained one: --policy.path CHECKPOINT."
                )
            longest = drawn.longest_example(self.policy.asking > 0)
            if self.policy.row_tokens < longest:
                raise UserError(
                    f"policy.row_tokens={self.policy.row_tokens} has no room for a picture and the "
                    f"longest example about it, which take {longest}. Use {longest} or more."
                )
            for name in ("hard", "first_kind"):
                value = getattr(self.policy, name)
                if value > 0 and isinstance(self.task, EasyVQAConfig):
                    raise UserError(
                        f"policy.{name}={value}: easy-vqa has neither faint pictures nor kinds of "
                        f"them. Use --policy.{name.replace('_', '-')} 0."
                    )
        if drawn and self.trainer.max_new_tokens < drawn.LONGEST_RESPONSE:
            raise UserError(
                f"trainer.max_new_tokens={self.trainer.max_new_tokens} cuts off responses of the task, "
                f"which have up to {drawn.LONGEST_RESPONSE} tokens. Use at least "
                f"{drawn.LONGEST_RESPONSE}."
            )
        writes = [arm for arm in self.arms if ARMS[arm].questions]
        if writes and isinstance(self.policy, BaseConfig) and self.policy.asking == 0:
            raise UserError(
                f"arms={' '.join(self.arms)}: {writes[0]} trains on questions that the base wrote, and "
                f"policy.asking={self.policy.asking} makes one that never learnt to write any. Use "
                "--policy.asking 0.15, or leave the arm out."
            )
        if writes and isinstance(self.task, DataConfig) and self.task.image_column is None:
            raise UserError(
                f"arms={' '.join(self.arms)}: {writes[0]} trains on questions about the task's images, "
                "and task.image_column=None names none. Use --task.image-column NAME --task.chat, or "
                "leave the arm out."
            )
        sized = [n for n in ("min_pixels", "max_pixels") if getattr(self, n) is not None]
        if drawn and sized:
            raise UserError(
                f"{sized[0]}={getattr(self, sized[0])} resizes pictures, and this task's have the "
                "size that they are shown in. Leave it out."
            )
