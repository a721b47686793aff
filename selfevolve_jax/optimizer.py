"""AdamW with clipping, a schedule and a weight-decay mask, from one plain config."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from models.params import ParamSpec
from selfevolve_jax.errors import UserError


@dataclass(frozen=True)
class OptimizerConfig:
    """Defaults are SRT's. Warm-up is linear and its first step moves already; "cosine" and "linear"
    would reach `end_factor` times the peak one step after the run's last, so that no step has rate
    0. Weight decay acts on matrices, not on norms and biases."""

    learning_rate: float = 1e-6
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    end_factor: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps"):
            if not getattr(self, name) > 0:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must be above 0.")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must be in [0, 1).")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise UserError(
                f"optimizer.warmup_steps={self.warmup_steps} and "
                f"optimizer.weight_decay={self.weight_decay} must not be negative."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(
                f"optimizer.clip_norm={self.clip_norm} must be above 0, or None for off."
            )


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by optimiser step (0-based)."""
    peak, warm = config.learning_rate, config.warmup_steps
    rest = max(total_steps - warm, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.end_factor),
        "linear": lambda: optax.linear_schedule(peak, peak * config.end_factor, rest),
    }[config.schedule]()
    if not warm:
        return after
    # Step 0 already moves: (i + 1) / warm, so that the first batch is not wasted.
    up = optax.linear_schedule(peak / warm, peak, max(warm - 1, 1))
    return optax.join_schedules([up, after], [warm])


@functools.lru_cache
def make_optimizer(
    config: OptimizerConfig, total_steps: int, decayed: tuple[bool, ...]
) -> optax.GradientTransformation:
    """`decayed`: for each parameter leaf, whether weight decay acts on it (see `decay_mask`).

    Cached, since jitted functions take the transformation as a static argument: the same settings
    must give the same object or the step would compile again."""

    def mask(params: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(params), decayed)

    adamw = optax.adamw(
        learning_rate(config, total_steps),
        config.b1,
        config.b2,
        config.eps,
        weight_decay=config.weight_decay,
        mask=mask,
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def decay_mask(specs: Any) -> tuple[bool, ...]:
    """True for leaves that start as noise (matrices), False for norms and biases."""
    leaves: list[ParamSpec] = jax.tree.leaves(specs)
    return tuple(spec.stddev is not None for spec in leaves)
