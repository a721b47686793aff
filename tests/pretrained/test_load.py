"""Hugging Face folders in: parity, dtypes, meshes, and every way in which a folder can be bad."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import decoder
from selfevolve_jax.errors import UserError
from selfevolve_jax.pretrained import names, source
from selfevolve_jax.pretrained.hf_config_out import hf_config
from tests.models import test_parity as parity
from tests.pretrained import folders
from tests.reference import vlm


# qwen2's one kv head does not divide over two devices.
@pytest.mark.parametrize(
    ("name", "mesh"), [("llama-yarn", "mesh8"), ("qwen2-plain", "mesh1"), ("qwen3-plain", "mesh8")]
)
def test_logits_of_a_loaded_folder_equal_those_of_transformers(name, mesh, tmp_path, request):
    """The reference's weights, put into a folder as the hub has them."""
    cfg = parity.load_case(name)[1]
    stored = parity.reference()
    case = json.loads(str(stored[f"case/{name}"]))
    prefix = f"weights/{case['model']}/"
    tensors = {
        k.removeprefix(prefix): v.astype(np.float32)
        for k, v in stored.items()
        if k.startswith(prefix)
    }
    folders.write(tmp_path, hf_config(cfg) | {"eos_token_id": 1}, tensors)
    policy = source.load_policy(tmp_path, request.getfixturevalue(mesh))
    assert policy.model == cfg
    tokens, real = stored["tokens"], np.arange(14) < stored["lengths"][:, None]
    positions = np.broadcast_to(np.arange(14), tokens.shape)
    segments = np.where(real, 0, -1)

    @jax.jit
    def scores(params):
        hidden = decoder.forward(
            params, tokens, positions, segments, np.zeros_like(segments), policy.model
        )
        return decoder.logits(params, hidden, policy.model)

    ours = np.asarray(scores(policy.params))[real]
    np.testing.assert_allclose(ours, stored[f"logits/{name}"][real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("published", [True, False])
def test_vision_language_weights_are_those_of_the_parity_tests(published, mesh8, tmp_path):
    """Bit for bit the tree that Qwen2.5-VL's parity is shown with, under both kinds of names."""
    cfg = vlm.config()
    weights = {k: v.astype(np.float32) for k, v in vlm.under("weights/").items()}
    assert "model.visual.merger.ln_q.weight" in weights
    if published:
        weights = {
            k.replace("model.visual", "visual").replace("model.language_model", "model"): v
            for k, v in weights.items()
        }
    tokens = {"eos_token_id": 1, "vision_start_token_id": 40, "vision_end_token_id": 41}
    folders.write(tmp_path, hf_config(cfg, 512, tokens), weights)
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(folders.PREPROCESSOR | sizes))
    policy = source.load_policy(tmp_path, mesh8)
    assert policy.model == cfg
    jax.tree.map(np.testing.assert_array_equal, vlm.params(), policy.params)
    assert policy.images is not None
    assert (policy.images.min_pixels, policy.images.max_pixels) == (64, 4096)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", folders.CONFIGS)
def test_every_tensor_arrives_in_its_own_dtype(name, dtype, tmp_path, mesh8):
    folder, hf, tensors = folders.family(tmp_path, name, dtype, shards=3)
    policy = source.load_policy(folder, mesh8)
    assert (policy.model.param_dtype, policy.model.dtype) == (dtype, dtype)
    assert {str(x.dtype) for x in jax.tree.leaves(policy.params)} == {dtype}
    assert policy.stop_tokens == (1, 2) and policy.step == 0
    assert policy.tokenizer.model_max_length == 512
    assert policy.tokenizer.get_vocab() == {w: i for i, w in enumerate(folders.WORDS)}
    norm = np.asarray(policy.params.layers.attn_norm)
    for i in range(hf["num_hidden_layers"]):
        assert norm[i].tobytes() == tensors[f"model.layers.{i}.input_layernorm.weight"].tobytes()
    up = np.asarray(policy.params.layers.up[2])
    assert up.tobytes() == tensors["model.layers.2.mlp.up_proj.weight"].T.tobytes()


@pytest.mark.parametrize(("stored", "asked"), [("float32", "bfloat16"), ("float16", "float32")])
def test_a_cast_is_made_where_one_is_asked_for(stored, asked, tmp_path, mesh1):
    hf = folders.CONFIGS["qwen2"] | {"torch_dtype": stored}
    rng = np.random.default_rng(1)
    tensors = {
        k: rng.normal(size=s).astype(folders.DTYPES[stored]) for k, s in folders.shapes(hf).items()
    }
    folders.write(tmp_path, hf, tensors)
    policy = source.load_policy(tmp_path, mesh1, param_dtype=asked)
    assert (policy.model.param_dtype, policy.model.dtype) == (asked, asked)
    want = tensors["model.embed_tokens.weight"].astype(folders.DTYPES[asked])
    assert np.asarray(policy.params.embed).tobytes() == want.tobytes()
    mixed = source.load_policy(tmp_path, mesh1, param_dtype=asked, dtype="float32")
    assert (mixed.model.param_dtype, mixed.model.dtype) == (asked, "float32")


def test_the_file_says_the_dtype_where_the_config_does_not(tmp_path, mesh1):
    hf = {k: v for k, v in folders.CONFIGS["llama"].items() if k != "torch_dtype"}
    folders.write(tmp_path, hf, folders.weights(hf, "bfloat16"))
    assert source.load_policy(tmp_path, mesh1).model.param_dtype == "bfloat16"


def test_inert_constants_and_a_repeated_tied_head_are_passed_over(tmp_path, mesh8):
    hf = folders.CONFIGS["qwen2-tied"]
    tensors = folders.weights(hf)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "lm_head.weight": tensors["model.embed_tokens.weight"].copy(),
    }
    folders.write(tmp_path, hf, tensors | extra)
    policy = source.load_policy(tmp_path, mesh8)
    assert policy.params.head is None and policy.model.tie_embeddings


def test_a_checkpoint_of_one_mesh_is_the_same_on_another(tmp_path, mesh1, mesh8):
    folders.family(tmp_path, "qwen2.5-vl")
    one, eight = (source.load_policy(tmp_path, mesh).params for mesh in (mesh1, mesh8))
    assert not eight.embed.sharding.is_fully_replicated
    assert not eight.vision.layers.qkv.sharding.is_fully_replicated

    def same(a, b):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    jax.tree.map(same, one, eight)


# --- bad folders ---


@pytest.fixture
def good(tmp_path):
    """(folder, config, tensors) of a tied model, in one file, which tests then break."""
    return folders.family(tmp_path / "model", "qwen2-tied")


def refused(folder, mesh, pattern, **options):
    with pytest.raises(UserError, match=pattern) as error:
        source.load_policy(folder, mesh, **options)
    assert "\n" not in str(error.value)


def resave(folder, tensors):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_missing_shard(tmp_path, mesh1):
    folder, _, _ = folders.family(tmp_path, "llama", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, mesh1, r"lacks 1 of the 3 files .* model-00002-of-00003\.safetensors")


@pytest.mark.parametrize("keep", [0.0, 1e-3, 0.5, 0.999])
def test_a_truncated_file(good, mesh1, keep):
    file = good[0] / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    refused(good[0], mesh1, r"model\.safetensors is damaged or cut short")


def test_a_truncated_shard(tmp_path, mesh1):
    folder, _, _ = folders.family(tmp_path, "llama", shards=3)
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, mesh1, "model-00003-of-00003.safetensors is damaged or cut short")


@pytest.mark.parametrize("text", ["{", "[1]", '{"metadata": {}}'])
def test_a_damaged_index(tmp_path, mesh1, text):
    folder, _, _ = folders.family(tmp_path, "llama", shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, mesh1, r"model\.safetensors\.index\.json")


def test_no_weights(good, mesh1):
    (good[0] / "model.safetensors").unlink()
    refused(good[0], mesh1, r"holds neither model\.safetensors nor")
    (good[0] / "pytorch_model.bin").write_bytes(b"x")
    refused(good[0], mesh1, r"pytorch_model\.bin: pickled weights")


def test_a_missing_tensor(good, mesh1):
    folder, _, tensors = good
    del tensors["model.layers.1.mlp.up_proj.weight"]
    resave(folder, tensors)
    refused(folder, mesh1, r"lacks the tensor\(s\) model\.layers\.1\.mlp\.up_proj\.weight\.")


def test_a_missing_head_says_why_it_is_wanted(good, mesh1):
    folder, hf, _ = good
    (folder / "config.json").write_text(json.dumps(hf | {"tie_word_embeddings": False}))
    refused(folder, mesh1, r"lm_head\.weight\. .*tie_word_embeddings false")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.input_layernorm.weight",
        "model.layers.0.self_attn.o_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "visual.merger.ln_q.weight",
        "score.weight",
    ],
)
def test_a_tensor_that_no_parameter_takes(good, mesh1, name):
    folder, _, tensors = good
    resave(folder, tensors | {name: np.ones(8, ml_dtypes.bfloat16)})
    refused(folder, mesh1, rf"no place for: {re.escape(name)}\.")


@pytest.mark.parametrize("shape", [(48, 33), (33, 48), (32, 48), (48 * 32,), (48, 32, 1)])
def test_a_wrong_shape(good, mesh1, shape):
    folder, _, tensors = good
    name = "model.layers.2.mlp.gate_proj.weight"
    resave(folder, tensors | {name: np.zeros(shape, ml_dtypes.bfloat16)})
    said = rf"{re.escape(name)} .* has shape {re.escape(str(shape))}; .* asks for \(48, 32\)"
    refused(folder, mesh1, said)


def test_two_names_for_one_tensor(tmp_path, mesh1):
    folder, _, tensors = folders.family(tmp_path, "qwen2.5-vl")
    twin = {"model.visual.merger.ln_q.weight": tensors["visual.merger.ln_q.weight"].copy()}
    resave(folder, tensors | twin)
    refused(folder, mesh1, r"visual\.merger\.ln_q\.weight .* a second time")


def test_a_tensor_of_another_dtype(good, mesh1):
    folder, _, tensors = good
    name = "model.layers.1.self_attn.k_proj.weight"
    resave(folder, tensors | {name: tensors[name].astype(np.float32)})
    refused(folder, mesh1, rf"{re.escape(name)} .* is float32 where config\.json says bfloat16")
    policy = source.load_policy(folder, mesh1, param_dtype="bfloat16")
    want = tensors[name].reshape(2, 8, 32).transpose(2, 0, 1)
    assert np.asarray(policy.params.layers.k[1]).tobytes() == want.tobytes()


def test_half_precision_and_quantised_weights(good, mesh1):
    folder, hf, tensors = good
    (folder / "config.json").write_text(json.dumps(hf | {"torch_dtype": "float16"}))
    refused(folder, mesh1, "weights are float16, which is not kept.*bfloat16 or float32")
    name = "model.layers.0.mlp.up_proj.weight"
    resave(folder, tensors | {name: np.zeros((48, 32), np.int8)})
    refused(folder, mesh1, "up_proj.weight .* is I8: quantised", param_dtype="float32")


def test_a_tied_head_that_is_not_the_embedding(good, mesh1):
    folder, _, tensors = good
    head = tensors["model.embed_tokens.weight"].copy()
    head.view(np.uint16)[-1, -1] ^= 1
    resave(folder, tensors | {"lm_head.weight": head})
    refused(folder, mesh1, r"lm_head\.weight differs from model\.embed_tokens\.weight")


def test_a_tokenizer_that_disagrees_with_the_vocabulary(good, mesh1):
    folder = good[0]
    words = (*folders.WORDS, *(f"w{i}" for i in range(7)))  # 33 tokens on 32 rows
    assert len(words) == folders.VOCABULARY + 1
    folders.tokenizer(words).save_pretrained(folder)
    refused(folder, mesh1, r"tokenizer disagrees .*'w6' has id 32, .*vocab_size is 32")
    folders.tokenizer(words[:-1]).save_pretrained(folder)
    assert source.load_policy(folder, mesh1).model.vocab_size == folders.VOCABULARY


def test_a_stop_token_beyond_the_vocabulary(good, mesh1):
    (good[0] / "generation_config.json").write_text('{"eos_token_id": [1, 99]}')
    refused(good[0], mesh1, "stop token' has id 99")


def test_an_image_token_beyond_the_vocabulary(tmp_path, mesh1):
    folder, hf, _ = folders.family(tmp_path, "qwen2.5-vl")
    (folder / "config.json").write_text(json.dumps(hf | {"image_token_id": 32}))
    refused(folder, mesh1, "image token' has id 32")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_damaged_json_file(good, mesh1, file):
    (good[0] / file).write_text('{"a":')
    refused(good[0], mesh1, "tokenizer in .* damaged" if "tokenizer" in file else file)


def test_a_missing_tokenizer(good, mesh1):
    for file in good[0].glob("*token*"):
        file.unlink()
    refused(good[0], mesh1, "tokenizer in .* is missing: .*tokenizer.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"do_resize": False}, "do_resize False"),
        ({"resample": 2}, "resample 2"),
        ({"patch_size": 14}, "patch_size 14 differs from config.json's 4"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"image_mean": None}, "lacks image_mean"),
        ({"image_std": "wide"}, "not understood"),
        ({"min_pixels": 10**9}, "min_pixels=1000000000"),
    ],
)
def test_a_preprocessor_that_ours_is_not(tmp_path, mesh1, change, said):
    folder, _, _ = folders.family(tmp_path, "qwen2.5-vl")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(folders.PREPROCESSOR | change))
    refused(folder, mesh1, re.escape(said))


def test_a_missing_preprocessor_and_one_of_newer_transformers(tmp_path, mesh1):
    folder, _, _ = folders.family(tmp_path, "qwen2.5-vl")
    (folder / "preprocessor_config.json").unlink()
    refused(folder, mesh1, r"preprocessor_config\.json is missing")
    newer = {k: v for k, v in folders.PREPROCESSOR.items() if not k.endswith("_pixels")}
    newer["size"] = {"shortest_edge": 64, "longest_edge": 4096}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": newer}))
    images = source.load_policy(folder, mesh1).images
    assert images is not None and (images.min_pixels, images.max_pixels) == (64, 4096)


def test_keys_that_were_not_read_are_told(good, mesh1, capsys):
    folder, hf, _ = good
    (folder / "config.json").write_text(json.dumps(hf | {"new_trick": 1}))
    source.load_policy(folder, mesh1)
    assert capsys.readouterr().err.strip().endswith("config.json: not read: new_trick")


@pytest.mark.parametrize("name", folders.CONFIGS)
def test_the_table_names_what_the_hub_has(name):
    from selfevolve_jax.pretrained.hf_config import model_config

    hf = folders.CONFIGS[name]
    ours = {n: w.shape for n, (_, _, w) in names.tensors(model_config(hf)[0]).items()}
    assert ours == folders.shapes(hf)
    for name in ours:
        newer = f"model.{name}"
        if not name.startswith("visual."):
            newer = name.replace("model.", "model.language_model.", 1)
        assert names.published(newer) == names.published(name) == name


def test_safetensors_files_are_not_written_to(good, mesh1):
    file = good[0] / "model.safetensors"
    before = load_file(file)
    policy = source.load_policy(good[0], mesh1)
    jax.jit(lambda p: jax.tree.map(lambda x: x * 0, p), donate_argnums=0)(policy.params)
    after = load_file(file)
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)
