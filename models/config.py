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
class VisionConfig:
    """The vision tower of Qwen2.5-VL (arXiv 2502.13923), whose output has the decoder's width.

    patch, window: sides in pixels. merge: patches along each side of a merge unit, which becomes one
    token. temporal: frames a patch spans; a still image fills them with copies. full_attention: the
    layers in which a patch sees its whole image; in the others it sees its window.
    image_token: the id that stands in a prompt once for each merge unit.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    image_token: int
    full_attention: tuple[int, ...]
    patch: int = 14
    temporal: int = 2
    merge: int = 2
    window: int = 112
    channels: int = 3

    def __post_init__(self) -> None:
        if self.d_model % (4 * self.n_heads):
            raise ValueError(
                f"vision d_model {self.d_model} is not a multiple of 4 x n_heads {self.n_heads}, as "
                "its two-dimensional rotary embedding needs"
            )
        if self.window % self.unit:
            raise ValueError(
                f"vision window {self.window} is not a multiple of patch {self.patch} x merge "
                f"{self.merge} = {self.unit} pixels"
            )
        outside = [i for i in self.full_attention if not 0 <= i < self.n_layers]
        if outside:
            raise ValueError(f"vision full_attention {outside} outside {self.n_layers} layers")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def patch_dim(self) -> int:
        return self.channels * self.temporal * self.patch**2

    @property
    def unit(self) -> int:
        """Pixels along a side of a merge unit; image sides are multiples of it."""
        return self.patch * self.merge

    @property
    def window_units(self) -> int:
        """Merge units in a whole window."""
        return (self.window // self.unit) ** 2


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): W + alpha/rank · A·B on the named projections, of the
    decoder and, if `vision`, of the vision tower's (whose q, k and v are one). rank 0: none."""

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = PROJECTIONS
    vision: bool = False

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank {self.rank} must not be negative")
        unknown = [t for t in self.targets if t not in PROJECTIONS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"lora.targets {' '.join(self.targets)!r}: name some of {', '.join(PROJECTIONS)}, "
                "each once"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama, Qwen2/2.5 or Qwen3 family, or Qwen2.5-VL with its vision tower.

    Llama: the defaults. Qwen2/2.5: qkv_bias=True. Qwen3: qk_norm=True. Qwen2.5-VL: qkv_bias,
    mrope_sections and vision. Parameters are kept in `param_dtype`; matrix products run in `dtype`;
    norms, softmax and logits are float32.
    mrope_sections: how many rotary frequencies turn with time, height and width (M-RoPE).
    remat: what the backward pass computes again; "dots" keeps matrix products, "full" nothing.
    attention: how whole sequences are read, see `attention.py`; "auto" goes by where they are.
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
    mrope_sections: tuple[int, int, int] | None = None
    vision: VisionConfig | None = None
    lora: LoraConfig = LoraConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["auto", "plain", "flash", "cudnn"] = "auto"
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
        if self.mrope_sections and sum(self.mrope_sections) != self.head_dim // 2:
            raise ValueError(
                f"mrope_sections {self.mrope_sections} do not sum to head_dim/2 = "
                f"{self.head_dim // 2}"
            )
        if self.vision and not self.mrope_sections:
            raise ValueError("a model with vision needs mrope_sections")

    def to_dict(self) -> dict[str, Any]:
        """Plain data to be stored. Without `attention`: it says nothing of the model, and what suits
        the devices that wrote a policy may not run on those that read it."""
        return {name: value for name, value in asdict(self).items() if name != "attention"}


def config_from_dict(stored: dict[str, Any]) -> ModelConfig:
    """The inverse of `ModelConfig.to_dict`, for a config that was read back from JSON."""

    def read(kind: Any, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})

    nested = {"rope_scaling": RopeScaling, "vision": VisionConfig, "lora": LoraConfig}
    return read(ModelConfig, {k: read(nested.get(k), v) for k, v in stored.items()})
