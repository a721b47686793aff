"""Everything that defines an MM-UPT run, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.config import ModelConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.mm_upt.arms import ARMS
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.tasks import pictures
from selfevolve_jax.tasks.dataset import DataConfig
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
    supervised learning from noisy labels of the pictures task.

    drawings: how many it learns from, each asked about again and again. noise: probability that a step
    is replaced by a random value. hard: the part of the drawings that is faint. asking: the part of the
    examples that teach it to write questions (`pictures.DIRECT`, `IN_CONTEXT`).
    """

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            vocab_size=pictures.VOCABULARY,
            d_model=128,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            head_dim=32,
            d_ff=384,
            qkv_bias=True,
            mrope_sections=(4, 6, 6),
            vision=pictures.VISION,
            unroll=2,
        )
    )
    drawings: int = 12_000
    noise: float = 0.15
    hard: float = 0.0
    asking: float = 0.15
    steps: int = 1200
    batch: int = 64
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
        for name in ("noise", "hard", "asking"):
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
class MMUPTRecipe:
    """One MM-UPT experiment: questions about pictures, a policy to start from, and arms (`arms.ARMS`).

    min_pixels, max_pixels: the area that a picture is resized into; as the policy has it if None.
    filter_below: the majority fraction under which the arm `filter` leaves a question out.
    """

    task: PicturesConfig | DataConfig = field(default_factory=PicturesConfig)
    policy: BaseConfig | CheckpointConfig = field(default_factory=BaseConfig)
    trainer: TrainerConfig = PUBLISHED
    min_pixels: int | None = None
    max_pixels: int | None = None
    filter_below: float = 0.6
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
        drawn, made = isinstance(self.task, PicturesConfig), isinstance(self.policy, BaseConfig)
        if made and not drawn:
            raise UserError(
                "policy is a base made for the pictures task, but the task is "
                f"{type(self.task).__name__}. Give a trained one: --policy.path CHECKPOINT."
            )
        if drawn and self.trainer.max_new_tokens < pictures.LONGEST_RESPONSE:
            raise UserError(
                f"trainer.max_new_tokens={self.trainer.max_new_tokens} cuts off responses of the "
                f"pictures task, which have up to {pictures.LONGEST_RESPONSE} tokens. Use at least "
                f"{pictures.LONGEST_RESPONSE}."
            )
        sized = [n for n in ("min_pixels", "max_pixels") if getattr(self, n) is not None]
        if drawn and sized:
            raise UserError(
                f"{sized[0]}={getattr(self, sized[0])} resizes pictures, and the pictures task draws "
                "them in the size that they are shown in. Leave it out."
            )
