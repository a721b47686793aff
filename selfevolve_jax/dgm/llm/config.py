"""Which models a run uses, by role, and what it may spend on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from selfevolve_jax.errors import UserError
from selfevolve_jax.llm.config import ModelConfig

ROLES = ("coding", "diagnosis")


@dataclass(frozen=True)
class BudgetConfig:
    """dollars, tokens (in and out together): of the whole run, resumes included; spent, the run stops.
    session_dollars, session_tokens, session_calls: of one agent's job; spent, that agent gets no
    further answer. Unset: no limit. A limit ends calls once it is reached: those under way may pass it.
    """

    dollars: float | None = None
    tokens: int | None = None
    session_dollars: float | None = None
    session_tokens: int | None = None
    session_calls: int = 200

    def __post_init__(self) -> None:
        for name in ("dollars", "tokens", "session_dollars", "session_tokens", "session_calls"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"budget.{name}={value}: give a number that is more than 0.")


@dataclass(frozen=True)
class ModelsConfig:
    """coding: the model that agents work with. diagnosis: the one that says what is wrong with them;
    with no name of its own it is coding's."""

    coding: ModelConfig = field(default_factory=ModelConfig)
    diagnosis: ModelConfig = field(default_factory=ModelConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        if not self.diagnosis.model and self.diagnosis != ModelConfig():
            raise UserError(
                "options of diagnosis are set, but not diagnosis.model. Fix: give its name, or leave "
                "them all, and the coding model does both."
            )
        if self.budget.dollars or self.budget.session_dollars:
            for role in ROLES:
                model = self.of(role)
                if model.model and not (model.price_in or model.price_out):
                    raise UserError(
                        f"a budget in dollars is set, but {model.model} ({role}) costs nothing. "
                        "Fix: give price_in and price_out (dollars a million tokens), or a budget "
                        "in tokens."
                    )

    def of(self, role: str) -> ModelConfig:
        """ValueError for a role that is none of ROLES."""
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {ROLES}")
        return self.diagnosis if role == "diagnosis" and self.diagnosis.model else self.coding
