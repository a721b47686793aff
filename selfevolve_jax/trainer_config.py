"""Every option of the loop, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jax.sharding import Mesh

from models.config import LoraConfig
from selfevolve_jax import sharding
from selfevolve_jax.early_stop import EarlyStop
from selfevolve_jax.errors import UserError
from selfevolve_jax.grpo.config import GRPOConfig
from selfevolve_jax.optimizer import OptimizerConfig
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.sampling import Sampling, check_sampling


@dataclass(frozen=True)
class TrainerConfig:
    """Defaults are SRT's published settings.

    samples_per_prompt: G, all of which vote. trained_per_prompt: how many of them are trained on,
    None for all. A batch is prompts_per_step × samples_per_prompt samples.
    vote_threshold: rows with a smaller majority fraction leave the loss.
    eval_every, save_every: in steps; both also happen at the end, and evaluation at the start.
    shared_prompt: how many samples of a prompt share one copy of it in the update; pack: several
    prompts in a row of training tokens. Both change the time a step takes, and not its numbers.
    lora: adapters are trained in place of the weights. train_vision: the vision tower too, where the
    policy has one; with shared_prompt=samples_per_prompt it then encodes each prompt once.
    one_step_off: the samples of a step are drawn with the weights that the step before it began with,
    so that on devices of their own (mesh.rollout) they are drawn while that step's update goes on;
    grpo.importance_cap corrects for it.
    The cures of collapse: resample: how many times further rows of the stream may replace those that
    vote_threshold leaves out (`resample.fill`). teacher_decay: a moving average of the policy votes in
    its place (`teacher`); for the judge `majority` alone, the other arms train as without it.
    early_stop: by held-out accuracy. alarm: what happens when training looks like collapse, which
    needs no labels (`alarm.read`): a warning, an end, or an end at the last checkpoint before it.
    """

    steps: int = 1000
    prompts_per_step: int = 16
    samples_per_prompt: int = 32
    trained_per_prompt: int | None = None
    max_new_tokens: int = 3072
    vote_threshold: float = 0.0
    eval_every: int = 50
    eval_samples: int = 32
    save_every: int = 50
    keep: int = 2
    shared_prompt: int = 1
    pack: bool = False
    train_vision: bool = False
    one_step_off: bool = False
    resample: int = 0
    teacher_decay: float | None = None
    alarm: Literal["off", "warn", "stop", "rollback"] = "warn"
    early_stop: EarlyStop = field(default_factory=EarlyStop)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        for name in (
            *("steps", "prompts_per_step", "samples_per_prompt", "max_new_tokens"),
            *("eval_every", "eval_samples", "save_every", "keep", "shared_prompt"),
        ):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name}={getattr(self, name)} must be at least 1.")
        if not 1 <= (self.trained_per_prompt or 1) <= self.samples_per_prompt:
            raise UserError(
                f"trainer.trained_per_prompt={self.trained_per_prompt} must be between 1 and "
                f"trainer.samples_per_prompt={self.samples_per_prompt}."
            )
        if not 0 <= self.vote_threshold <= 1:
            raise UserError(f"trainer.vote_threshold={self.vote_threshold} must be in [0, 1].")
        if self.resample < 0:
            raise UserError(f"trainer.resample={self.resample} must be 0 (off) or more rounds.")
        if self.teacher_decay is not None and not 0 <= self.teacher_decay <= 1:
            raise UserError(
                f"trainer.teacher_decay={self.teacher_decay} must be in [0, 1]: 0 is the policy of the "
                "moment, 1 the base for ever."
            )
        if self.samples_per_prompt % self.shared_prompt:
            raise UserError(
                f"trainer.shared_prompt={self.shared_prompt} does not divide "
                f"trainer.samples_per_prompt={self.samples_per_prompt}."
            )
        if self.train_vision and self.lora.rank:
            raise UserError(
                f"trainer.train_vision=True trains the whole vision tower, and trainer.lora.rank="
                f"{self.lora.rank} adapters alone. Use trainer.lora.vision for adapters in the tower."
            )
        if self.one_step_off and self.grpo.importance_cap is None:
            raise UserError(
                "trainer.one_step_off=True trains on samples of an older policy, and trainer.grpo."
                "importance_cap=None does not correct for it. Set trainer.grpo.importance_cap=2.0."
            )
        check_sampling(self.sampling)
        if self.sampling.temperature == 0:
            raise UserError(
                "trainer.sampling.temperature=0: greedy samples of a prompt are all alike, so there "
                "is nothing to vote on. Use 1.0."
            )


def check_batch(config: TrainerConfig, mesh: Mesh) -> None:
    """UserError if the batch does not divide into its pieces; before any weight is loaded."""
    rows = config.prompts_per_step * config.samples_per_prompt // config.shared_prompt
    ways, grpo = sharding.batch_ways(mesh), config.grpo
    pieces = ways * grpo.accumulate * grpo.minibatches
    if rows % pieces:
        raise UserError(
            f"trainer.prompts_per_step={config.prompts_per_step} × trainer.samples_per_prompt="
            f"{config.samples_per_prompt} / trainer.shared_prompt={config.shared_prompt} = {rows} "
            f"rows do not divide over {ways} batch shards (mesh.data × mesh.fsdp) × "
            f"trainer.grpo.accumulate={grpo.accumulate} × trainer.grpo.minibatches="
            f"{grpo.minibatches} = {pieces}. Make the rows a multiple of {pieces}."
        )
