"""Makes vlm.npz: what torch and transformers give for a tiny random Qwen2.5-VL.

Run in an environment of its own, as the project itself needs no torch:

    python3.11 -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers==5.23.0 pillow
    VENV/bin/python tests/reference/make_vlm_reference.py

The batch has four rows: two images among text, text alone, an image before anything else, and one
image that fills its window. The reference pads it on the left; only real tokens are kept, row after
row. N: real tokens of all rows, P: patches of all images, U: merge units of all images.

    config                  JSON: ModelConfig fields
    weights/HF_NAME         float16; the model ran in float32 on exactly these values
    smart_resize            int64 [n, 7]: height, width, factor, min and max pixels -> height, width
    image/NAME              uint8: a PNG file; image_order: JSON list of the names, as in the batch
    pixels/NAME, grid/NAME  float32 [h·w, C], int [2]: from the PIL image processor
    pixels14/NAME, grid14/NAME  the same with the published patch of 14 pixels
    prompt                  JSON: rows of ids before each image token is repeated for its merge units
    tokens, lengths         int32 [N], [B]: after that
    positions, deltas       int32 [N, 3], [B]: M-RoPE
    window_order            int32 [U]: natural number of the merge unit at each place
    vision/cos, vision/sin  float32 [P, K/2], in window order, as are
    vision/patch_embed, vision/block/I, vision/merged     [P, D], [P, D], [U, d_model]
    vision/features         float32 [U, d_model], in natural order
    text/cos, text/sin      float32 [N, K/2]
    text/embeds, text/layer/I, text/final     float32 [N, d_model]
    logits, logits_tied     float32 [N, V]; tied: with the embedding as the head
    logprobs                float32 [N], of each token at T = 0.7 given those before it; 0 for a first
    loss, gradient/HF_NAME  −mean of logprobs over all but first tokens, and its gradients
    greedy, greedy_logits   int32 [B, n], float32 [B, n, V]: greedy continuation with the key/value
                            cache, and the logits that each token was taken from
"""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.vision_utils import get_vision_window_index

CONFIG = {
    "vocab_size": 48,
    "d_model": 64,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "d_ff": 96,
    "rope_theta": 100.0,  # small, so that height and width turn by more than a hair
    "norm_eps": 1e-6,
    "qkv_bias": True,
    "mrope_sections": [2, 3, 3],
    "vision": {
        "d_model": 32,
        "n_layers": 4,
        "n_heads": 4,
        "d_ff": 48,
        "image_token": 42,
        "full_attention": [1, 3],
        "patch": 4,  # with a window of 4 x 4 merge units, as published, and far fewer pixels
        "window": 32,
    },
}
VISION = CONFIG["vision"]
START, END, IMAGE = 40, 41, VISION["image_token"]
TEMPERATURE, NEW_TOKENS = 0.7, 8
MIN_PIXELS, MAX_PIXELS = 256, 2048
GRADIENTS = (
    "model.visual.patch_embed.proj.weight",
    "model.visual.blocks.0.attn.qkv.weight",
    "model.visual.blocks.1.attn.qkv.bias",
    "model.visual.blocks.3.mlp.down_proj.weight",
    "model.visual.merger.ln_q.weight",
    "model.visual.merger.mlp.2.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.language_model.layers.2.self_attn.k_proj.bias",
    "model.language_model.embed_tokens.weight",
)
RESIZES = [
    *[(h, w, 28, 3136, 12845056) for h in (1, 14, 27, 42, 70, 98) for w in (1, 14, 42, 70, 126)],
    *[(200, 1, 28, 3136, 12845056), (1, 200, 28, 3136, 12845056)],
    *[(20000, 100, 28, 3136, 12845056), (150, 30000, 28, 3136, 1003520)],
    *[(4000, 6000, 28, 3136, 12845056), (4000, 6000, 28, 3136, 1003520)],
    *[(1080, 1920, 28, 3136, 1003520), (1280, 720, 28, 200704, 1003520)],
    *[(224, 224, 28, 200704, 1003520), (1, 1, 28, 3136, 3136), (56, 56, 28, 3136, 3136)],
    *[(5600, 28, 28, 3136, 7000), (13, 2600, 28, 784, 1000), (57, 57, 28, 3136, 3136)],
    *[(h, w, 8, 256, 1344) for h in (4, 12, 20, 36, 44) for w in (4, 9, 28, 60)],
]


def random_images(rng: np.random.Generator) -> dict[str, bytes]:
    """PNG files by name: noise over a gradient, in each of the modes that PNG files come in."""

    def noise(height: int, width: int, channels: int) -> np.ndarray:
        slope = np.linspace(0, 160, height * width).reshape(height, width, 1)
        return (slope + rng.integers(0, 96, (height, width, channels))).astype(np.uint8)

    def png(image: Image.Image, **options) -> bytes:
        file = io.BytesIO()
        image.save(file, "PNG", **options)
        return file.getvalue()

    palette = Image.fromarray(noise(16, 15, 3)).quantize(16)
    return {
        "large": png(
            Image.fromarray(noise(39, 41, 3))
        ),  # 10 x 10 patches: four windows, three of them ragged
        "wide": png(Image.fromarray(noise(50, 93, 3))),  # over MAX_PIXELS; two windows
        "alpha": png(Image.fromarray(noise(9, 10, 4), "RGBA")),  # under MIN_PIXELS
        "square": png(Image.fromarray(noise(32, 33, 1)[..., 0])),  # grey; one whole window
        "palette": png(palette, transparency=3),
        "grey_alpha": png(Image.fromarray(noise(17, 24, 2), "LA")),
    }


IN_BATCH = ("large", "wide", "alpha", "square")


def build(tied: bool) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": CONFIG["vocab_size"],
        "hidden_size": CONFIG["d_model"],
        "intermediate_size": CONFIG["d_ff"],
        "num_hidden_layers": CONFIG["n_layers"],
        "num_attention_heads": CONFIG["n_heads"],
        "num_key_value_heads": CONFIG["n_kv_heads"],
        "rms_norm_eps": CONFIG["norm_eps"],
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": CONFIG["rope_theta"],
            "mrope_section": CONFIG["mrope_sections"],
        },
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": tied,
    }
    vision = {
        "depth": VISION["n_layers"],
        "hidden_size": VISION["d_model"],
        "intermediate_size": VISION["d_ff"],
        "num_heads": VISION["n_heads"],
        "patch_size": VISION["patch"],
        "window_size": VISION["window"],
        "out_hidden_size": CONFIG["d_model"],
        "fullatt_block_indexes": VISION["full_attention"],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    return Qwen2_5_VLForConditionalGeneration(config).to(torch.float32).eval()


def random_weights(model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Norm scales far from 1 and biases far from 0, so that one left out or misplaced shows; what
    enters the vision tower's residual stream is small, so that it does not hide attention and eps
    counts."""
    out = {}
    for name, tensor in model.named_parameters():
        shape = tuple(tensor.shape)
        visual = "visual" in name
        if "norm" in name or "ln_q" in name:
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            into_residual = visual and ("attn.proj" in name or "down_proj" in name)
            value = rng.normal(0, 0.02 if into_residual else 0.5, shape)
        elif "patch_embed" in name:
            value = rng.normal(0, 0.02 * np.prod(shape[1:]) ** -0.5, shape)
        elif visual and ("attn.proj" in name or "down_proj" in name):
            value = rng.normal(0, 0.2 * shape[-1] ** -0.5, shape)
        else:
            value = rng.normal(0, shape[-1] ** -0.5, shape)
        out[name] = value.astype(np.float16)
    return out


def load(model, weights: dict[str, np.ndarray]) -> None:
    tensors = {k: torch.tensor(v.astype(np.float32)) for k, v in weights.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()


def record(modules: dict) -> dict[str, np.ndarray]:
    """Fills the dict that it returns with the output of each named module when it next runs."""
    seen = {}

    def hook(name):
        def keep(module, arguments, output):
            output = output[0] if isinstance(output, tuple) and len(output) == 1 else output
            seen[name] = output

        return keep

    for name, module in modules.items():
        module.register_forward_hook(hook(name))
    return seen


def pixel_values(images: dict[str, bytes], patch: int, limits: tuple[int, int]) -> tuple:
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        size={"shortest_edge": limits[0], "longest_edge": limits[1]},
    )
    pixels, grids = {}, {}
    for name, data in images.items():
        out = processor(Image.open(io.BytesIO(data)), return_tensors="np")
        pixels[name] = np.asarray(out["pixel_values"], np.float32)
        grids[name] = np.asarray(out["image_grid_thw"][0][1:])
    return pixels, grids


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(7)
    arrays = {"config": np.array(json.dumps(CONFIG))}
    arrays["smart_resize"] = np.array([(*case, *smart_resize(*case)) for case in RESIZES])

    images = random_images(rng)
    pixels, grids = pixel_values(images, VISION["patch"], (MIN_PIXELS, MAX_PIXELS))
    arrays["image_order"] = np.array(json.dumps(IN_BATCH))
    for name, data in images.items():
        arrays[f"image/{name}"] = np.frombuffer(data, np.uint8)
        arrays[f"pixels/{name}"], arrays[f"grid/{name}"] = pixels[name], grids[name]
    large, large_grids = pixel_values(
        {name: images[name] for name in ("large", "alpha")}, 14, (3136, 12845056)
    )
    for name in large:
        arrays[f"pixels14/{name}"], arrays[f"grid14/{name}"] = large[name], large_grids[name]

    def text(n: int) -> list[int]:
        return [int(t) for t in rng.integers(1, START, n)]

    picture = [START, IMAGE, END]
    prompt = [
        [*text(3), *picture, *text(2), *picture, *text(4)],
        text(9),
        [*picture, *text(5)],
        [*text(1), *picture, *text(3)],
    ]
    arrays["prompt"] = np.array(json.dumps(prompt))
    units = iter([int(np.prod(grids[name])) // 4 for name in IN_BATCH])
    rows = [[t for u in row for t in ([u] * next(units) if u == IMAGE else [u])] for row in prompt]
    lengths = np.array([len(row) for row in rows], np.int32)
    arrays["tokens"], arrays["lengths"] = np.concatenate(rows).astype(np.int32), lengths
    width = lengths.max()
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    real = torch.arange(width) >= torch.tensor(width - lengths)[:, None]
    inputs = {
        "input_ids": tokens,
        "attention_mask": real.long(),
        "pixel_values": torch.tensor(np.concatenate([pixels[name] for name in IN_BATCH])),
        "image_grid_thw": torch.tensor([[1, *grids[name]] for name in IN_BATCH]),
        # Without these newer versions of transformers leave M-RoPE out and say nothing.
        "mm_token_type_ids": (tokens == IMAGE).int(),
    }

    model = build(tied=False)
    weights = random_weights(model, rng)
    load(model, weights)
    arrays |= {f"weights/{name}": value for name, value in weights.items()}
    positions, deltas = model.model.get_rope_index(
        tokens, inputs["mm_token_type_ids"], inputs["image_grid_thw"], attention_mask=real.long()
    )
    arrays["positions"] = positions.permute(1, 2, 0)[real].numpy().astype(np.int32)
    arrays["deltas"] = deltas[:, 0].numpy().astype(np.int32)
    order, _ = get_vision_window_index(
        inputs["image_grid_thw"],
        spatial_merge_size=2,
        window_size=VISION["window"],
        patch_size=VISION["patch"],
    )
    arrays["window_order"] = order.numpy().astype(np.int32)

    visual, language = model.model.visual, model.model.language_model
    seen = record(
        {"vision/patch_embed": visual.patch_embed, "vision/merged": visual.merger}
        | {f"vision/block/{i}": block for i, block in enumerate(visual.blocks)}
        | {f"text/layer/{i}": layer for i, layer in enumerate(language.layers)}
        | {"text/final": language.norm, "vision_rope": visual.rotary_pos_emb}
        | {"text_rope": language.rotary_emb, "vision": visual}
    )
    embeds = []
    language.register_forward_pre_hook(
        lambda module, arguments, keywords: embeds.append(keywords["inputs_embeds"]),
        with_kwargs=True,
    )
    logits = model(**inputs).logits

    def halves(pair, name):
        """cos and sin without their second half, which repeats the first; in window order."""
        for which, value in zip(("cos", "sin"), pair, strict=True):
            left, right = value.chunk(2, -1)
            assert torch.equal(left, right)
            if name == "vision":
                left = left.reshape(len(order), 4, -1)[order].reshape(left.shape)
            else:
                left = left[real]
            arrays[f"{name}/{which}"] = left.numpy()

    halves(seen.pop("vision_rope"), "vision")
    halves(seen.pop("text_rope"), "text")
    # By now the model has split it by image, in place.
    features = torch.cat(seen.pop("vision").pooler_output)
    arrays["vision/features"] = features.detach().numpy()
    arrays["text/embeds"] = embeds[0][real].detach().numpy()
    for name, value in seen.items():
        value = value[real] if name.startswith("text") else value
        arrays[name] = value.detach().numpy()
    # The reference permutes patches into window order after embedding them; so are ours.
    embedded = arrays["vision/patch_embed"].reshape(len(order), 4, -1)
    arrays["vision/patch_embed"] = embedded[order].reshape(-1, VISION["d_model"])
    arrays["logits"] = logits[real].detach().numpy()

    scores = torch.log_softmax(logits[:, :-1] / TEMPERATURE, -1)
    logprobs = torch.gather(scores, -1, tokens[:, 1:, None])[..., 0]
    counted = real[:, 1:] & real[:, :-1]
    logprobs = torch.where(counted, logprobs, 0.0)
    loss = -logprobs.sum() / counted.sum()
    loss.backward()
    full = torch.cat([torch.zeros(len(rows), 1), logprobs], 1)
    arrays["logprobs"], arrays["loss"] = full[real].detach().numpy(), loss.detach().numpy()
    for name, parameter in model.named_parameters():
        if name in GRADIENTS:
            arrays[f"gradient/{name}"] = parameter.grad.numpy()

    with torch.no_grad():
        generated = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    out = generated.sequences
    greedy = out[:, width:].numpy()
    assert greedy.shape == (len(rows), NEW_TOKENS) and IMAGE not in greedy, greedy
    arrays["greedy"] = greedy.astype(np.int32)
    arrays["greedy_logits"] = torch.stack(generated.logits, 1).numpy()
    # The cached continuation is that of full passes too, so that the M-RoPE delta was in it.
    with torch.no_grad():
        again = model(
            **inputs
            | {
                "input_ids": out,
                "attention_mask": torch.cat([real.long(), torch.ones_like(out[:, width:])], 1),
                "mm_token_type_ids": (out == IMAGE).int(),
            }
        ).logits
    assert torch.equal(again[:, width - 1 : -1].argmax(-1), out[:, width:])

    tied = build(tied=True)
    load(tied, {k: v for k, v in weights.items() if k != "lm_head.weight"})
    with torch.no_grad():
        arrays["logits_tied"] = tied(**inputs).logits[real].numpy()

    path = Path(__file__).with_name("vlm.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
