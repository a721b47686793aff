"""config.json of published models, what is refused, and the way back through transformers."""

import json

import pytest
from transformers import AutoConfig

from models import decoder
from models.config import ModelConfig, RopeScaling, VisionConfig
from models.params import count
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained.hf_config import model_config
from selfevolve_jax.pretrained.hf_config_out import hf_config

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA31 = RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)
BF16 = {"dtype": "bfloat16", "param_dtype": "bfloat16"}


def qwen25(**changes):
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
        **changes,
    }


def qwen25_vl(width, heads, kv, ff, layers, vocabulary, tied, tower_ff=3420):
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": ff,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": tower_ff,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": vocabulary,
    }


QWEN3_14B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17408,
    "max_position_embeddings": 32768,
    "max_window_layers": 40,
    "model_type": "qwen3",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "vocab_size": 49152,
}
TOWER = VisionConfig(1280, 32, 16, 3420, 151655, (7, 15, 23, 31), 14, 2, 2, 112, 3)
VL = {"rope_theta": 1e6, "qkv_bias": True, "mrope_sections": (16, 24, 24), **BF16}
VL_3B = qwen25_vl(2048, 16, 2, 11008, 36, 151936, True)
VL_7B = qwen25_vl(3584, 28, 4, 18944, 28, 152064, False)
VL_72B = qwen25_vl(8192, 64, 8, 29568, 80, 152064, False, 3456)
TOWER_72B = VisionConfig(1280, 32, 16, 3456, 151655, (7, 15, 23, 31), 14, 2, 2, 112, 3)

# (config.json, what it means, parameters as their model cards or files count them)
PUBLISHED = {
    "Qwen2.5-7B": (
        qwen25(),
        ModelConfig(152064, 3584, 28, 28, 4, 128, 18944, 1e6, qkv_bias=True, **BF16),
        7_615_616_512,
    ),
    "Qwen2.5-Math-7B": (
        qwen25(max_position_embeddings=4096, rope_theta=10000, sliding_window=4096),
        ModelConfig(152064, 3584, 28, 28, 4, 128, 18944, 1e4, qkv_bias=True, **BF16),
        7_615_616_512,
    ),
    "Qwen3-14B": (
        QWEN3_14B,
        ModelConfig(151936, 5120, 40, 40, 8, 128, 17408, 1e6, qk_norm=True, **BF16),
        14_768_307_200,
    ),
    "Llama-3.1-8B": (
        LLAMA31_8B,
        ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, 5e5, LLAMA31, 1e-5, **BF16),
        8_030_261_248,
    ),
    "SmolLM2-135M": (
        SMOLLM2_135M,
        ModelConfig(
            *(49152, 576, 30, 9, 3, 64, 1536, 1e5, None, 1e-5), tie_embeddings=True, **BF16
        ),
        134_515_008,
    ),
    "Qwen2.5-VL-3B": (
        VL_3B,
        ModelConfig(
            *(151936, 2048, 36, 16, 2, 128, 11008), tie_embeddings=True, vision=TOWER, **VL
        ),
        3_754_622_976,
    ),
    "Qwen2.5-VL-7B": (
        VL_7B,
        ModelConfig(152064, 3584, 28, 28, 4, 128, 18944, vision=TOWER, **VL),
        8_292_166_656,
    ),
    "Qwen2.5-VL-72B": (
        VL_72B,
        ModelConfig(152064, 8192, 80, 64, 8, 128, 29568, vision=TOWER_72B, **VL),
        73_410_777_344,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_mean_what_they_say(name):
    hf, expected, parameters = PUBLISHED[name]
    config, unread = model_config(hf)
    assert config == expected
    assert unread == (("use_mrope",) if name.startswith("Qwen2.5-7B") or "Math" in name else ())
    assert count(decoder.abstract_params(config)) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_reads_back_the_same(name):
    hf, expected, _ = PUBLISHED[name]
    written = json.loads(json.dumps(hf_config(expected, hf["max_position_embeddings"])))
    assert model_config(written) == (expected, ())
    # and says nothing but what the published one says
    for key in hf.keys() & written.keys() - {"vision_config", "initializer_range"}:
        assert written[key] == hf[key], key
    if "vision_config" in hf:
        assert hf["vision_config"].items() <= written["vision_config"].items()


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_same_numbers_from_what_is_written(name, tmp_path):
    """And from what transformers itself writes of it, in its newer layout, ours reads the same."""
    hf, expected, _ = PUBLISHED[name]
    special = {"bos_token_id": 1, "eos_token_id": [2, 3]}
    folders = {"published": hf, "ours": hf_config(expected, hf["max_position_embeddings"], special)}
    read = {}
    for folder, config in folders.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        read[folder] = AutoConfig.from_pretrained(tmp_path / folder)
    ours, theirs = (read[k].get_text_config().to_dict() for k in ("ours", "published"))
    assert ours["eos_token_id"] == [2, 3]
    assert read["ours"].tie_word_embeddings == expected.tie_embeddings
    ignored = {"initializer_range", "bos_token_id", "eos_token_id", "_name_or_path", "use_mrope"}
    ignored |= {"sliding_window", "max_window_layers", "transformers_version", "pretraining_tp"}
    ignored |= {"is_llama_config", "rope_interleaved", "vision_token_id"}
    keys = (ours.keys() & theirs.keys()) - ignored
    assert {k: ours[k] for k in keys} == {k: theirs[k] for k in keys}
    assert {"rope_parameters", "num_hidden_layers", "rms_norm_eps", "vocab_size"} <= keys
    if expected.vision:
        both = [read[k].vision_config.to_dict() for k in ("ours", "published")]
        assert {k: both[0].get(k) for k in both[1]} == both[1] | {"in_chans": 3}
    read["ours"].save_pretrained(tmp_path / "new")
    newer = json.loads((tmp_path / "new" / "config.json").read_text())
    assert "rope_theta" not in newer  # the layout is another one
    assert model_config(newer)[0] == expected


def test_a_layout_that_repeats_the_decoder_inside_and_beside():
    """As transformers 4.53 saved it: outer dtype counts, inner token ids are null."""
    inner = {k: v for k, v in VL_7B.items() if k not in ("vision_config", "architectures")}
    inner |= {"model_type": "qwen2_5_vl_text", "torch_dtype": "float32", "image_token_id": None}
    inner["rope_scaling"] = {
        "mrope_section": [16, 24, 24],
        "rope_type": "default",
        "type": "default",
    }
    inner["layer_types"] = ["full_attention"] * 28
    hf = VL_7B | {"text_config": inner}
    assert model_config(hf)[0] == PUBLISHED["Qwen2.5-VL-7B"][1]


def test_keys_that_nobody_knows_are_handed_back():
    config, unread = model_config(QWEN3_14B | {"new_trick": 1, "absent": None, "alpha": [2]})
    assert config == PUBLISHED["Qwen3-14B"][1] and unread == ("alpha", "new_trick")
    vision = VL_3B["vision_config"] | {"twist": True}
    assert model_config(VL_3B | {"vision_config": vision})[1] == ("vision_config.twist",)


def test_defaults_of_the_architectures_where_a_config_is_silent():
    silent = {k: v for k, v in LLAMA31_8B.items() if k not in ("rope_theta", "rope_scaling")}
    del silent["num_key_value_heads"], silent["tie_word_embeddings"], silent["torch_dtype"]
    config, _ = model_config(silent)
    assert config.rope_theta == 1e4 and config.n_kv_heads == 32 and not config.tie_embeddings
    assert config.param_dtype == "float32"
    qwen3 = {k: v for k, v in QWEN3_14B.items() if k not in ("head_dim", "architectures")}
    assert model_config(qwen3 | {"hidden_size": 1000})[0].head_dim == 128
    vl = {k: v for k, v in VL_3B.items() if k != "rope_theta"}
    assert model_config(vl)[0].rope_theta == 1e6


def test_yarn():
    hf = qwen25(rope_scaling=YARN)
    assert model_config(hf)[0].rope_scaling == RopeScaling("yarn", 4.0, 32768)
    options = {"beta_fast": 16, "beta_slow": 2, "attention_factor": 0.75, "truncate": True}
    full = RopeScaling("yarn", 4.0, 32768, beta_fast=16.0, beta_slow=2.0, attention_factor=0.75)
    mixed = YARN | options | {"mrope_section": [16, 24, 24]}
    for config in (
        model_config(qwen25(rope_scaling=YARN | options))[0],
        model_config(VL_7B | {"rope_scaling": mixed})[0],
    ):
        assert config.rope_scaling == full
        assert model_config(hf_config(config))[0] == config


def test_yarn_of_a_model_that_does_not_say_how_long_it_was():
    rope = {"type": "yarn", "factor": 4.0}
    hf = qwen25(rope_scaling=rope, max_position_embeddings=4096)
    assert model_config(hf)[0].rope_scaling == RopeScaling("yarn", 4.0, 4096)
    outer = {"original_max_position_embeddings": 1024}
    assert model_config(hf | outer)[0].rope_scaling == RopeScaling("yarn", 4.0, 1024)
    with pytest.raises(UserError, match="32768 inside and 1024 outside"):
        model_config(qwen25(rope_scaling=YARN) | outer)


def test_linear():
    config = model_config(qwen25(rope_scaling={"rope_type": "linear", "factor": 2}))[0]
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert model_config(hf_config(config))[0] == config


REFUSED = [
    (qwen25(architectures=["MistralForCausalLM"]), "architecture MistralForCausalLM"),
    (qwen25(architectures=["Qwen2ForCausalLM", "X"]), "architecture Qwen2ForCausalLM, X"),
    (qwen25(architectures=None, model_type="gemma3"), "model_type 'gemma3'"),
    (qwen25(hidden_act="gelu"), "hidden_act 'gelu'"),
    (qwen25(use_sliding_window=True), "use_sliding_window True"),
    (qwen25(layer_types=["full_attention", "sliding_attention"]), "'sliding_attention'"),
    (qwen25(quantization_config={"quant_method": "awq"}), "quantization_config"),
    (qwen25(auto_map={"AutoModel": "x.py"}), "auto_map"),
    (qwen25(num_experts=8), "num_experts 8"),
    (qwen25(head_dim=31), "head_dim 31 is odd"),
    (qwen25(num_key_value_heads=5), "n_heads 28 is not a multiple of n_kv_heads 5"),
    (qwen25(hidden_size="wide"), "hidden_size is 'wide'"),
    (qwen25(num_hidden_layers=None), "num_hidden_layers is missing"),
    (qwen25(rms_norm_eps=None), "rms_norm_eps is missing"),
    (qwen25(hidden_size=3585), "hidden_size 3585 is not a multiple"),
    (qwen25(rope_scaling={"type": "dynamic", "factor": 2.0}), "type 'dynamic'"),
    (qwen25(rope_scaling={"type": "longrope", "factor": 2.0}), "type 'longrope'"),
    (qwen25(rope_scaling={"rope_type": "mrope"}), "type 'mrope'"),
    (qwen25(rope_scaling={"rope_type": "linear"}), "factor is missing"),
    (qwen25(rope_scaling=YARN | {"truncate": False}), "truncate false"),
    (qwen25(rope_scaling=YARN | {"mscale": 1.0}), "mscale=1.0"),
    (qwen25(rope_scaling=YARN | {"factor": -1.0}), "factor must be positive"),
    (qwen25(rope_scaling={"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
    (qwen25(rope_scaling="yarn"), "rope_scaling is 'yarn'"),
    (qwen25(rope_scaling=YARN, rope_parameters={"rope_type": "default"}), "differ"),
    (qwen25(partial_rotary_factor=0.25), "partial_rotary_factor 0.25"),
    (qwen25(vision_config={}), "vision_config is unknown"),
    (LLAMA31_8B | {"attention_bias": True}, "attention_bias True"),
    (LLAMA31_8B | {"mlp_bias": True}, "mlp_bias True"),
    (LLAMA31_8B | {"pretraining_tp": 2}, "pretraining_tp 2"),
    (LLAMA31_8B | {"attention_multiplier": 0.1}, "attention_multiplier 0.1"),
    (LLAMA31_8B | {"logits_scaling": 8}, "logits_scaling 8"),
    (SMOLLM2_135M | {"rope_interleaved": True}, "rope_interleaved True"),
    (QWEN3_14B | {"attention_bias": True}, "attention_bias True"),
    (VL_3B | {"vision_config": None}, "vision_config is missing"),
    (VL_3B | {"image_token_id": None}, "image_token_id is missing"),
    (VL_3B | {"rope_scaling": {"type": "mrope"}}, "mrope_section None"),
    (VL_3B | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "do not sum"),
    (
        VL_3B
        | {
            "rope_scaling": {
                "type": "default",
                "mrope_section": [16, 24, 24],
                "mrope_interleaved": True,
            }
        },
        "mrope_interleaved True",
    ),
    *(
        (VL_3B | {"vision_config": VL_3B["vision_config"] | change}, said)
        for change, said in [
            ({"out_hidden_size": 3584}, "out_hidden_size 3584 is not the decoder's hidden_size"),
            ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
            ({"fullatt_block_indexes": None}, "fullatt_block_indexes None"),
            ({"fullatt_block_indexes": [40]}, "outside 32 layers"),
            ({"window_size": 100}, "window 100"),
            ({"in_channels": 1}, "contradicts itself"),
            ({"spatial_patch_size": 16}, "contradicts itself"),
            ({"depth": None}, "depth is missing"),
        ]
    ),
]


@pytest.mark.parametrize(("hf", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_not_supported_is_named_and_refused(hf, said):
    with pytest.raises(UserError) as error:
        model_config(hf, "here/config.json")
    assert str(error.value).startswith("here/config.json") and said in str(error.value)


def test_a_model_of_no_published_architecture_is_not_written():
    sizes = (16, 32, 2, 4, 2, 8, 48)
    for options in (
        {"qkv_bias": True, "qk_norm": True},
        {"qkv_bias": True, "mrope_sections": (1, 1, 2)},
    ):
        with pytest.raises(UserError, match="of no architecture"):
            hf_config(ModelConfig(*sizes, **options))
