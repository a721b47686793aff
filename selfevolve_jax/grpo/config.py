"""Every choice of the policy-gradient step, checked as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class GRPOConfig:
    """Defaults are SRT's: RLOO advantages, clip 0.2 with dual clip 3, fully on-policy.

    kl_coef: β; 0 means no reference policy is held and none is evaluated. kl_in: "loss" (GRPO) adds
    β·KL to each token's loss; "reward" (RLOO) takes β·Σ_t KL from each sample's reward.
    importance_cap: C of truncated importance sampling against the sampler's log-probs, None for off.
    overlong_buffer: last tokens before the limit over which the reward falls by overlong_factor
      (DAPO); 0 for off.
    minibatches: optimiser steps per batch of samples. 1 is fully on-policy: π_old is π itself.
    accumulate: pieces in which each optimiser step's gradient is summed; changes memory, not numbers.
    logprob_chunk: tokens whose [B, chunk, V] scores are held at a time.
    """

    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"] = "rloo"
    loss: Literal["ppo", "gspo", "cispo"] = "ppo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = 3.0
    aggregation: Literal[
        "token_mean", "seq_mean_token_sum", "seq_mean_token_mean", "seq_mean_token_sum_norm"
    ] = "token_mean"
    kl_coef: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    overlong_buffer: int = 0
    overlong_factor: float = 1.0
    minibatches: int = 1
    accumulate: int = 1
    logprob_chunk: int = 256

    @property
    def scored_first(self) -> bool:
        """Whether the policy's own log-probs are needed before the update."""
        return self.minibatches > 1 or (self.kl_coef > 0 and self.kl_in == "reward")

    def __post_init__(self) -> None:
        for name in ("minibatches", "accumulate", "logprob_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"grpo.{name}={getattr(self, name)} must be at least 1.")
        for name in ("clip_low", "clip_high", "kl_coef", "overlong_buffer"):
            if getattr(self, name) < 0:
                raise UserError(f"grpo.{name}={getattr(self, name)} must not be negative.")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise UserError(f"grpo.dual_clip={self.dual_clip} must be above 1, or None for off.")
        if self.importance_cap is not None and self.importance_cap <= 0:
            raise UserError(
                f"grpo.importance_cap={self.importance_cap} must be above 0, or None for off."
            )
