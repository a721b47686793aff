"""The sizes and switches that define a decoder, hashable so that jit may take them as static."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


def _check_choices(config: Any) -> None:
    """ValueError unless every Literal field holds one of its values: a stored config is not typed,
    and a kind that nobody knows must not be taken for another."""
    for name, hint in get_type_hints(type(config)).items():
        value, choices = getattr(config, name), get_args(hint)
        if get_origin(hint) is Literal and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was first trained on.

    linear: all frequencies / factor (Chen et al. 2023). llama3: long wavelengths / factor, short ones
    kept, a ramp between (Llama 3.1 release). yarn: the same idea with a ramp over dimensions and an
    attention temperature (Peng et al. 2023, section 3).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: 0.1 ln(factor) + 1

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.factor <= 0:
            raise ValueError(f"rope scaling factor must be positive, got {self.factor}")
        if self.kind != "linear" and self.original_max_position <= 0:
            raise ValueError(
                f"rope scaling {self.kind!r} needs original_max_position, "
                f"got {self.original_max_position}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama, Qwen2/2.5 or Qwen3 family.

    Llama: the defaults. Qwen2/2.5: qkv_bias=True. Qwen3: qk_norm=True. Parameters are kept in
    `param_dtype`; matrix products run in `dtype`; norms, softmax and logits are float32.
    remat: what the backward pass computes again; "dots" keeps matrix products, "full" nothing.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    unroll: int = 1  # layers a scan step runs: more is a little faster and compiles for longer

    def __post_init__(self) -> None:
        _check_choices(self)
        for name, hint in get_type_hints(type(self)).items():
            if hint is int and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding needs pairs")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def config_from_dict(stored: dict[str, Any]) -> ModelConfig:
    """The inverse of `ModelConfig.to_dict`, for a config that was read back from JSON."""
    scaling = stored.get("rope_scaling")
    return ModelConfig(**{**stored, "rope_scaling": RopeScaling(**scaling) if scaling else None})
