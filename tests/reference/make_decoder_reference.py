"""Makes decoder.npz: what torch and transformers give for tiny random Llama, Qwen2 and Qwen3 models.

Run in an environment of its own, as the project itself needs no torch:

    python3.11 -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers==5.23.0
    VENV/bin/python tests/reference/make_decoder_reference.py

The file holds, under names with slashes:
    weights/MODEL/HF_NAME   float16; the models ran in float32 on exactly these values
    case/NAME               JSON: {"model": MODEL, "config": ModelConfig fields}
    tokens, lengths         int32 [B, T], [B]: one right-padded batch that all cases read
    logits/NAME             float32 [B, T, V]; only positions below a row's length mean anything
    rope/NAME, rope_factor/NAME, rope_case/NAME
                            inverse frequencies [K/2], the factor on cos and sin, and the JSON of
                            {"head_dim", "theta", "scaling": RopeScaling fields}
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

VOCAB, LENGTHS, WIDTH = 32, (14, 5, 1, 9), 14

# Theta 100 and a short original length put dimensions on both sides of every ramp, so that each
# scaling changes the logits of a 14-token text by far more than the tolerance of the test.
THETA, ORIGINAL = 100.0, 64
TINY_SCALINGS = {
    "plain": None,
    "linear": {"kind": "linear", "factor": 3.0},
    "llama3": {"kind": "llama3", "factor": 8.0, "original_max_position": ORIGINAL},
    "yarn": {"kind": "yarn", "factor": 4.0, "original_max_position": ORIGINAL, "beta_fast": 8.0},
}

ROPE_CASES = {
    "linear": (128, 1e4, {"kind": "linear", "factor": 2.5}),
    "llama-3.1-8b": (128, 5e5, {"kind": "llama3", "factor": 8.0, "original_max_position": 8192}),
    "llama-3.2-1b": (64, 5e5, {"kind": "llama3", "factor": 32.0, "original_max_position": 8192}),
    "llama3-other-ramp": (
        32,
        1e4,
        {
            "kind": "llama3",
            "factor": 4.0,
            "original_max_position": 512,
            "low_freq_factor": 2.0,
            "high_freq_factor": 16.0,
        },
    ),
    "qwen2.5-7b-yarn": (128, 1e6, {"kind": "yarn", "factor": 4.0, "original_max_position": 32768}),
    "yarn-other-ramp": (
        64,
        1e4,
        {
            "kind": "yarn",
            "factor": 16.0,
            "original_max_position": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
    ),
    "yarn-given-attention": (
        64,
        1e4,
        {
            "kind": "yarn",
            "factor": 8.0,
            "original_max_position": 2048,
            "attention_factor": 0.75,
        },
    ),
    "yarn-no-ramp": (8, 1e4, {"kind": "yarn", "factor": 2.0, "original_max_position": 6}),
}


def hf_rope(theta: float, scaling: dict | None) -> dict:
    """Our RopeScaling fields under the names of transformers' rope_parameters."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    names = {"kind": "rope_type", "original_max_position": "original_max_position_embeddings"}
    out = {names.get(k, k): v for k, v in scaling.items()} | {"rope_theta": theta}
    if scaling["kind"] == "llama3":
        out = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} | out
    return out


def models() -> dict:
    """Our config fields and the transformers classes, by model."""
    common = {"vocab_size": VOCAB, "n_layers": 2, "n_heads": 4, "rope_theta": THETA}
    return {
        "llama": (
            common | {"d_model": 32, "n_kv_heads": 2, "head_dim": 8, "d_ff": 48, "norm_eps": 1e-4},
            LlamaConfig,
            LlamaForCausalLM,
        ),
        "qwen2": (
            common
            | {"d_model": 40, "n_kv_heads": 1, "head_dim": 10, "d_ff": 48, "norm_eps": 1e-5}
            | {"qkv_bias": True, "tie_embeddings": True},
            Qwen2Config,
            Qwen2ForCausalLM,
        ),
        "qwen3": (
            common
            | {"d_model": 32, "n_kv_heads": 2, "head_dim": 16, "d_ff": 40, "norm_eps": 1e-5}
            | {"qk_norm": True},
            Qwen3Config,
            Qwen3ForCausalLM,
        ),
    }


def build(ours: dict, scaling: dict | None, config_class, model_class):
    config = config_class(
        vocab_size=ours["vocab_size"],
        hidden_size=ours["d_model"],
        num_hidden_layers=ours["n_layers"],
        num_attention_heads=ours["n_heads"],
        num_key_value_heads=ours["n_kv_heads"],
        head_dim=ours["head_dim"],
        intermediate_size=ours["d_ff"],
        rms_norm_eps=ours["norm_eps"],
        tie_word_embeddings=ours.get("tie_embeddings", False),
        rope_parameters=hf_rope(ours["rope_theta"], scaling),
        max_position_embeddings=1024,
        attn_implementation="eager",
    )
    return model_class(config).to(torch.float32).eval()


def random_weights(model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Norm scales far from 1 and biases far from 0, so that one left out or misplaced shows."""
    out = {}
    for name, tensor in model.named_parameters():  # a tied head is listed once, as the embedding
        shape = tuple(tensor.shape)
        if "norm" in name:
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            value = rng.normal(0, 0.5, shape)
        else:
            value = rng.normal(0, shape[-1] ** -0.5, shape)
        out[name] = value.astype(np.float16)
    return out


def main() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array(LENGTHS, np.int32)
    tokens = rng.integers(0, VOCAB, (len(LENGTHS), WIDTH)).astype(np.int32)
    arrays = {"tokens": tokens, "lengths": lengths}
    mask = torch.tensor(np.arange(WIDTH) < lengths[:, None]).long()
    for family, (ours, config_class, model_class) in models().items():
        weights = random_weights(build(ours, None, config_class, model_class), rng)
        arrays |= {f"weights/{family}/{name}": value for name, value in weights.items()}
        # One set of Llama weights serves all scalings.
        for kind, scaling in TINY_SCALINGS.items() if family == "llama" else [("plain", None)]:
            model = build(ours, scaling, config_class, model_class)
            missing, unexpected = model.load_state_dict(
                {k: torch.tensor(v.astype(np.float32)) for k, v in weights.items()}, strict=False
            )
            assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
            model.tie_weights()
            with torch.no_grad():
                logits = model(torch.tensor(tokens).long(), attention_mask=mask).logits
            name = f"{family}-{kind}"
            fields = ours | ({"rope_scaling": scaling} if scaling else {})
            arrays[f"case/{name}"] = np.array(json.dumps({"model": family, "config": fields}))
            arrays[f"logits/{name}"] = logits.numpy().astype(np.float32)
    for name, (head_dim, theta, scaling) in ROPE_CASES.items():
        parameters = hf_rope(theta, scaling)
        config = SimpleNamespace(
            head_dim=head_dim,
            hidden_size=head_dim,
            num_attention_heads=1,
            max_position_embeddings=int(
                scaling.get("original_max_position", 1024) * scaling["factor"]
            ),
            rope_parameters=parameters,
            standardize_rope_params=lambda: None,
        )
        inv_freq, factor = ROPE_INIT_FUNCTIONS[scaling["kind"]](config, torch.device("cpu"))
        case = {"head_dim": head_dim, "theta": theta, "scaling": scaling}
        arrays[f"rope_case/{name}"] = np.array(json.dumps(case))
        arrays[f"rope/{name}"] = inv_freq.numpy()
        arrays[f"rope_factor/{name}"] = np.float64(factor)
    path = Path(__file__).with_name("decoder.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
