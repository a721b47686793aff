"""Everything that defines an SRT run, as one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.config import ModelConfig
from selfevolve_jax.errors import UserError
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.sharding import MeshConfig
from selfevolve_jax.srt.arms import ARMS, READ_GOLD, LabelsConfig
from selfevolve_jax.starting_point import CheckpointConfig
from selfevolve_jax.tasks.arithmetic import ArithmeticConfig, response_tokens
from selfevolve_jax.tasks.dataset import DataConfig
from selfevolve_jax.tasks.gym import GymConfig
from selfevolve_jax.tasks.sums import SumsConfig
from selfevolve_jax.trainer import TrainerConfig


@dataclass(frozen=True)
class BaseConfig:
    """A base policy that is made on the spot: supervised learning from noisy labels of the
    arithmetic task. noise: probability that a step's result is replaced by a random digit. numbers:
    lengths of the chains it learns from."""

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            vocab_size=16,
            d_model=128,
            n_layers=2,
            n_heads=4,
            n_kv_heads=4,
            head_dim=32,
            d_ff=256,
            unroll=2,
        )
    )
    numbers: tuple[int, ...] = (5,)
    noise: float = 0.2
    steps: int = 300
    batch: int = 256
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-3, weight_decay=0.0, clip_norm=None
        )
    )

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise UserError(f"policy.noise={self.noise} must be in [0, 1].")
        if self.steps < 1 or self.batch < 1:
            raise UserError(
                f"policy.steps={self.steps} and policy.batch={self.batch} must be at least 1."
            )
        if not self.numbers or min(self.numbers) < 2:
            raise UserError(f"policy.numbers={self.numbers}: a chain needs at least 2 numbers.")


@dataclass(frozen=True)
class SRTRecipe:
    """One SRT experiment: a task, a policy to start from, and arms (`arms.ARMS`) that differ in their
    judge, or in one cure of collapse. labels: of the arms that train on, or choose problems by, answers
    that the policy gave before training. test_time: train on the held-out problems, unlabelled, in
    place of the task's own (`test_time.at_test_time`)."""

    task: ArithmeticConfig | DataConfig | GymConfig | SumsConfig = field(
        default_factory=ArithmeticConfig
    )
    policy: BaseConfig | CheckpointConfig = field(default_factory=BaseConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    arms: tuple[str, ...] = ("srt", "random")
    test_time: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise UserError(f"arms={' '.join(self.arms)}: choose from {', '.join(ARMS)}.")
        if len(set(self.arms)) < len(self.arms):
            raise UserError(f"arms={' '.join(self.arms)}: an arm is named twice.")
        told = [arm for arm in self.arms if arm in READ_GOLD]
        if self.test_time and (told or self.trainer.early_stop.patience):
            what = f"arms={' '.join(told)}" if told else "trainer.early_stop"
            raise UserError(
                f"test_time=True trains on the test problems, and {what} would read their answers. "
                "Leave one of the two out."
            )
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must not be negative.")
        if isinstance(self.policy, BaseConfig) and not isinstance(self.task, ArithmeticConfig):
            raise UserError(
                "policy is a base made for the arithmetic task, but the task is "
                f"{type(self.task).__name__}. Give a trained one: --policy.path CHECKPOINT."
            )
        if isinstance(self.task, ArithmeticConfig):
            needed = response_tokens(self.task)
            if self.trainer.max_new_tokens < needed:
                raise UserError(
                    f"trainer.max_new_tokens={self.trainer.max_new_tokens} cuts off chains of "
                    f"task.numbers={self.task.numbers}, whose responses have up to {needed} tokens. "
                    f"Use at least {needed}."
                )
            width = self.task.width
            if isinstance(self.policy, BaseConfig) and 0 < width < max(self.policy.numbers):
                raise UserError(
                    f"task.width={width} is less than the longest chain of policy.numbers="
                    f"{self.policy.numbers}. Use at least {max(self.policy.numbers)}."
                )
