"""Small GGUF files, written with the gguf package's writer as llama.cpp's converter lays them out,
and each quantisation undone by plain loops over its block layout."""

import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from selfevolve_jax.pretrained.gguf import _NAMES as GGUF_NAMES

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
# 32 tokens: two that end texts, letters, and one merge.
TOKENS = ("<|endoftext|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxy", "ab", *"ĠĊ01")
TOKENIZER = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": list(TOKENS),
    "token_type": [3, 3] + [1] * 30,
    "merges": ["a b"],
    "bos_token_id": 0,
    "eos_token_id": 1,
}
TEMPLATE = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"


def options(cfg) -> dict:
    """The metadata of a config, without the architecture before them."""
    found = {
        "context_length": 64,
        "embedding_length": cfg.d_model,
        "block_count": cfg.n_layers,
        "feed_forward_length": cfg.d_ff,
        "attention.head_count": cfg.n_heads,
        "attention.head_count_kv": cfg.n_kv_heads,
        "attention.key_length": cfg.head_dim,
        "attention.value_length": cfg.head_dim,
        "attention.layer_norm_rms_epsilon": float(cfg.norm_eps),
        "rope.freq_base": float(cfg.rope_theta),
        "rope.dimension_count": cfg.head_dim,
    }
    scaling = cfg.rope_scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
        if scaling.kind == "yarn":
            found["rope.scaling.original_context_length"] = scaling.original_max_position
            found["rope.scaling.yarn_beta_fast"] = float(scaling.beta_fast)
    return found


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k matrix as llama.cpp wants them: of each head, the first of the lower half, the
    first of the upper half, the second of the lower half, ..."""
    K = len(weight) // heads
    rows = []
    for head in range(heads):
        for i in range(K // 2):
            rows += [weight[head * K + i], weight[head * K + K // 2 + i]]
    return np.stack(rows)


def tensors(weights: dict[str, np.ndarray], architecture: str, cfg) -> dict[str, np.ndarray]:
    """Hugging Face weights by their names in a GGUF file."""
    found = {}
    for name, value in weights.items():
        parts = name.split(".")
        layer = parts[2] if parts[1] == "layers" else None
        pattern = name if layer is None else name.replace(f".{layer}.", ".{}.", 1)
        if architecture == "llama" and "q_proj" in name:
            value = permuted(value, cfg.n_heads)
        if architecture == "llama" and "k_proj" in name:
            value = permuted(value, cfg.n_kv_heads)
        found[GGUF_NAMES[pattern].format(layer)] = value
    return found


def write(
    path, architecture, metadata, arrays, tokenizer=TOKENIZER, general=None, template=TEMPLATE
):
    """arrays: float32, or (Kind, bytes [rows, bytes of a row]) of a quantised one."""
    writer = gguf.GGUFWriter(path, architecture)
    keys = {f"{architecture}.{k}": v for k, v in metadata.items()}
    keys |= {f"tokenizer.ggml.{k}": v for k, v in tokenizer.items()} | (general or {})
    if template:
        keys["tokenizer.chat_template"] = template
    for key, value in keys.items():
        kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
        if value is None:
            continue
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    for name, value in arrays.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[1], raw_dtype=value[0])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(rng: np.random.Generator, shape: tuple[int, int], kind: str):
    """(what `write` takes, the values it stands for): random blocks of valid bytes, scales small."""
    size, n_bytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    rows, columns = shape
    if kind in ("F32", "F16"):
        value = rng.normal(0, 0.1, shape).astype({"F32": np.float32, "F16": np.float16}[kind])
        return value, value.astype(np.float32)
    if kind == "BF16":
        halves = rng.normal(0, 0.1, shape).astype(np.float32).view(np.uint32) >> 16
        data = halves.astype("<u2").view(np.uint8)
        return (Kind.BF16, data), (halves << 16).view(np.float32)
    blocks = rng.integers(0, 256, (rows * columns // size, n_bytes), dtype=np.uint8)
    for offset in SCALES[kind]:
        scales = rng.normal(0, 0.002, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    values = np.array([UNDO[kind](block.tobytes()) for block in blocks], np.float32)
    return (Kind[kind], blocks.reshape(rows, -1)), values.reshape(shape)


def _half(block: bytes, at: int) -> float:
    return struct.unpack_from("<e", block, at)[0]


def _q8_0(block: bytes) -> list[float]:
    """float16 scale, 32 signed bytes."""
    return [_half(block, 0) * q for q in struct.unpack_from("<32b", block, 2)]


def _q4_0(block: bytes) -> list[float]:
    """float16 scale, 16 bytes: low halves are values 0 to 15, high halves 16 to 31; 8 is zero."""
    d, quants = _half(block, 0), block[2:18]
    return [d * ((q & 15) - 8) for q in quants] + [d * ((q >> 4) - 8) for q in quants]


def _q4_1(block: bytes) -> list[float]:
    """float16 scale and minimum, then as Q4_0 without an offset."""
    d, m, quants = _half(block, 0), _half(block, 2), block[4:20]
    return [d * (q & 15) + m for q in quants] + [d * (q >> 4) + m for q in quants]


def _q4_k(block: bytes) -> list[float]:
    """float16 scales of the scales and of the minima; 8 pairs of them in 6 bits, in 12 bytes; 128
    bytes whose low, then high halves are 32 values at a time."""
    d, dmin, packed, quants = _half(block, 0), _half(block, 2), block[4:16], block[16:144]
    values = []
    for group in range(8):
        if group < 4:
            scale, minimum = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4)
            minimum = (packed[group + 4] >> 4) | (packed[group] >> 6 << 4)
        for i in range(32):
            byte = quants[32 * (group // 2) + i]
            q = byte >> 4 if group % 2 else byte & 15
            values.append(d * scale * q - dmin * minimum)
    return values


def _q6_k(block: bytes) -> list[float]:
    """128 bytes of low halves, 64 of the two high bits, 16 signed scales, a float16 scale of these.
    Of 128 values, the first 64 have their low four bits in the low halves of 64 bytes, the others in
    the high halves; each 32 take another pair of bits of the same 32 bytes. 32 is zero."""
    low, high = block[:128], block[128:192]
    scales, d = struct.unpack_from("<16b", block, 192), _half(block, 208)
    values = []
    for i in range(256):
        half, j = divmod(i, 128)
        byte = low[64 * half + j % 64]
        four = byte >> 4 if j >= 64 else byte & 15
        two = (high[32 * half + j % 32] >> (2 * (j // 32))) & 3
        values.append(d * scales[i // 16] * ((four | two << 4) - 32))
    return values


UNDO = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q6_K": _q6_k}
SCALES = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}
