"""The sizes that are known without a network, against the parameter counts that the hub shows."""

import pytest

from models import decoder
from models.params import count
from selfevolve_jax.pretrained import source
from selfevolve_jax.pretrained.hf_config import model_config
from selfevolve_jax.pretrained.published import SIZES

COUNTS = {
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "Qwen/Qwen3-14B-Base": 14_768_307_200,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
}


def test_every_model_has_as_many_parameters_as_its_weights():
    assert {name: count(decoder.abstract_params(cfg)) for name, cfg in SIZES.items()} == COUNTS


def test_a_known_model_is_read_as_its_own_config_would_be():
    """Qwen2.5-Math-7B's config.json, as released."""
    released = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 4096,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    assert model_config(released)[0] == SIZES["Qwen/Qwen2.5-Math-7B"]


@pytest.mark.parametrize("name", COUNTS)
def test_no_network_is_asked_for_a_known_model(name, monkeypatch):
    import huggingface_hub

    def refused(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    assert source.read_model(name) == SIZES[name]


def test_a_folder_of_that_name_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen3-4B-Base").mkdir(parents=True)
    from selfevolve_jax.errors import UserError

    with pytest.raises(UserError, match=r"neither policy/model.json nor config.json"):
        source.read_model("Qwen/Qwen3-4B-Base")
