"""`selfevolve generate`: images, the stream, and what a policy may come from."""

import codecs
import contextlib
import io
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from launch import generate as command
from launch.cli import main
from models import decoder
from models.config import ModelConfig
from selfevolve_jax import checkpoint, sharding
from selfevolve_jax.checkpoint import Policy
from selfevolve_jax.errors import UserError
from selfevolve_jax.evaluate import decode
from selfevolve_jax.pretrained.export import export
from selfevolve_jax.rollout.engine import RolloutConfig
from selfevolve_jax.rollout.engine import generate as rollout
from selfevolve_jax.rollout.prompt_images import encode_images
from selfevolve_jax.rollout.sampling import Sampling
from selfevolve_jax.tasks.base import Row
from tests import seeing

TEXT = seeing.tokenizer()
MODEL = ModelConfig(
    vocab_size=len(TEXT),
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=48,
    qkv_bias=True,
    mrope_sections=(1, 1, 2),
    vision=seeing.VISION,
)
# Prompts are of one bucket, as are the numbers of windows, so that little is compiled.
TOKENS = 24
STOPS = (seeing.TEXT_END, seeing.TURN_END)
WARM = Sampling(temperature=0.7)
FIRST, SECOND = seeing.png(24, 16, seed=1), seeing.png(9, 17, seed=2)
BOTH = ("first.png", "second.png")


@pytest.fixture(scope="module")
def policy(tmp_path_factory, mesh1):
    """(folder, policy) of random weights; from here on all commands of this module see one device."""
    with pytest.MonkeyPatch.context() as patch:
        make_mesh = sharding.make_mesh
        patch.setattr(
            sharding, "make_mesh", lambda config: make_mesh(config, list(mesh1.devices.flat))
        )
        specs, rng = decoder.abstract_params(MODEL), np.random.default_rng(0)
        params = jax.tree.map(
            lambda spec, where: jax.device_put(
                rng.normal(spec.fill, spec.stddev or 0.1, spec.shape).astype(spec.dtype), where
            ),
            specs,
            sharding.tree_shardings(specs, mesh1),
        )
        made = Policy(params, MODEL, TEXT, STOPS, 0, seeing.IMAGES)
        folder = tmp_path_factory.mktemp("generate") / "policy"
        checkpoint.save_policy(made, folder)
        yield folder, made


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "first.png").write_bytes(FIRST)
    (tmp_path / "second.png").write_bytes(SECOND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder, prompt, *images, **options):
    options = {"max_new_tokens": TOKENS, "sampling": WARM} | options
    return command.generate(command.Generate(str(folder), prompt, images, **options))


def directly(policy, mesh, parts, images, config, n=1, seed=0):
    """The engine on a prompt written out by hand: text, and numbers of image tokens."""
    ids = []
    for part in ("<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\n", *parts):
        if isinstance(part, int):
            ids += [seeing.VISION_START, *[seeing.IMAGE] * part, seeing.VISION_END]
        else:
            ids += TEXT.encode(part)
    ids += TEXT.encode("<|im_end|>\n<|im_start|>assistant\n")
    row = Row(0, "", tuple(ids), images=tuple(images))
    samples = rollout(
        policy.params,
        [ids],
        [0],
        n,
        jax.random.key(seed),
        WARM,
        max_new_tokens=TOKENS,
        stop_tokens=STOPS,
        cfg=policy.model,
        mesh=mesh,
        config=config,
        images=encode_images(policy.params, [row], seeing.IMAGES, policy.model, mesh),
    )
    return decode(TEXT, samples)[0]


def test_the_text_is_the_engines_on_the_prompt_and_its_images(policy, place, mesh1):
    folder, made = policy
    parts, config = ["Is ", 6, " like ", 2, "?"], RolloutConfig(slots=1, chunk=8)
    for seed in (0, 1):
        one = run(folder, "Is <image> like <image>?", "first.png", "second.png", seed=seed)
        assert one == directly(made, mesh1, parts, [FIRST, SECOND], config, seed=seed)
    three = run(folder, "Why is that not so?", n=3, chat=True)
    assert three == directly(made, mesh1, ["Why is that not so?"], [], RolloutConfig(), n=3)


def test_the_text_changes_with_what_the_images_show(policy, place):
    """Of the same size, and then in another order."""
    folder, _ = policy
    (place / "other.png").write_bytes(seeing.png(24, 16, seed=9))
    texts = [
        run(folder, "Is <image> like <image>?", *names)[0]
        for names in (
            ("first.png", "second.png"),
            ("other.png", "second.png"),
            ("second.png", "first.png"),
        )
    ]
    assert len(set(texts)) == 3


def test_features_that_are_zero_give_another_text(policy, place, monkeypatch):
    folder, _ = policy
    before = run(folder, "What?", *BOTH)

    def blank(*arguments):
        seen = encode_images(*arguments)
        return seen and replace(seen, features_RxUxD=seen.features_RxUxD * 0)

    monkeypatch.setattr(command, "encode_images", blank)
    assert run(folder, "What?", *BOTH) != before


def test_the_command_prints_the_text_and_ends_the_line(policy, place, capsys):
    folder, _ = policy
    options = ["--max-new-tokens", str(TOKENS), "--sampling.temperature", "0.7"]
    main(["generate", str(folder), "--prompt", "What?", *options, "--image", *BOTH])
    shown = capsys.readouterr().out
    (text,) = run(folder, "What?", *BOTH)
    assert shown == text + "\n"


def test_several_samples_are_told_apart(policy, place, capsys):
    folder, _ = policy
    texts = run(folder, "Why is that not so?", n=3, chat=True)
    assert len(set(texts)) == 3
    lines = [f"--- {i} of 3 ---\n{text}\n" for i, text in enumerate(texts, start=1)]
    assert capsys.readouterr().out == "".join(lines)


def test_a_single_sample_is_printed_as_it_comes(policy, place, monkeypatch):
    folder, _ = policy
    written = []

    class Terminal(io.StringIO):
        def flush(self):
            written.append(self.getvalue())

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    (text,) = run(folder, "What?", *BOTH)
    assert len(written) == 3, "a look at the text every eight tokens"
    assert all((text + "\n").startswith(part) for part in written)
    assert written[0] != written[1] != written[2] and terminal.getvalue() == text + "\n"


def test_special_tokens_that_end_a_text_are_not_printed(policy, place, capsys):
    """A head of zeros: the likeliest token is the first of all, which ends a text."""
    _, made = policy
    params = replace(made.params, head=made.params.head * 0)
    checkpoint.save_policy(
        replace(
            made,
            params=params,
        ),
        place / "p",
    )
    assert run(place / "p", "What?", *BOTH, sampling=Sampling(0.0)) == [""]
    assert capsys.readouterr().out == "\n"
    _, printed, _ = follow(TEXT, [TEXT.encode("ok é"), [seeing.TURN_END]])
    assert printed == "ok é\n"


def test_a_hugging_face_folder_says_the_same(policy, place, tmp_path):
    folder, made = policy
    export(made, tmp_path / "hf")
    assert run(tmp_path / "hf", "What?", *BOTH) == run(folder, "What?", *BOTH)


class Asked(Exception):
    """Raised in the engine's place, with what it was asked."""


@pytest.fixture
def asked(monkeypatch):
    def engine(params, prompts, *_, **options):
        raise Asked(prompts[0], options["cfg"])

    monkeypatch.setattr(command, "rollout", engine)


def test_the_dtype_of_products_can_be_chosen(policy, asked):
    with pytest.raises(Asked) as caught:
        run(policy[0], "What?", dtype="bfloat16")
    cfg = caught.value.args[1]
    assert (cfg.dtype, cfg.param_dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("prompt", "images", "reason"),
    [
        ("What?", ["gone.png"], "image gone.png does not exist"),
        ("<image> <image>", ["first.png"], "marks 2 place(s) with <image> for 1 image(s)"),
        ("<image>", [], "marks 1 place(s) with <image> for 0 image(s)"),
        ("<|image_pad|>", ["first.png"], "--prompt: the text contains <|image_pad|>"),
        ("", ["first.png"], 'prompt="" is empty'),
    ],
)
def test_mistakes_are_one_box(policy, place, capsys, prompt, images, reason):
    folder, _ = policy
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        images = ["--image", *images] if images else []
        main(["generate", str(folder), "--prompt", prompt, *images])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("╭") == 1
    assert "".join(reason.split()) in "".join(err.replace("│", "").split()), err


def test_a_missing_image_is_refused_before_any_weight_is_read(place, monkeypatch):
    monkeypatch.setattr(command, "load_policy", lambda *_, **__: pytest.fail("read weights"))
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        run("nowhere", "What?", "gone.png")


def test_a_policy_of_text_refuses_an_image(policy, place, asked):
    _, made = policy
    model = replace(MODEL, vision=None, mrope_sections=None)
    params = replace(made.params, vision=None)
    checkpoint.save_policy(replace(made, params=params, model=model, images=None), place / "p")
    with pytest.raises(UserError, match=r"--prompt: it has 1 image.*reads text only"):
        run(place / "p", "What?", "first.png")
    # For it, the marker is text like any other.
    with pytest.raises(Asked) as caught:
        run(place / "p", "<image>")
    assert caught.value.args[0] == tuple(TEXT.encode("<image>"))


# --- the stream ----------------------------------------------------------------------------------


def fallback_tokenizer():
    """Words with a leading mark for a space, and bytes for what has no token, as Llama 2's."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += ["▁", "▁the", "a", "é", "▁日", ".", "\n"]
    inner = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


FALLBACK = fallback_tokenizer()


def cut(draw, tokens):
    """The tokens in chunks of random lengths."""
    chunks = []
    while tokens:
        n = draw(st.integers(1, 9))
        chunks.append(tokens[:n])
        tokens = tokens[n:]
    return chunks


@st.composite
def streams(draw, tokenizer):
    return cut(draw, draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40)))


@st.composite
def spoken(draw):
    text = draw(st.text(st.sampled_from("ab é日\n€👩‍👩‍👧🏽\u0301"), max_size=12))
    return text, cut(draw, TEXT.encode(text))


def follow(tokenizer, chunks):
    """What had been printed after each chunk, and in the end; and the unstreamed text."""
    tell, finish = command._printer(tokenizer)
    flat = [t for chunk in chunks for t in chunk]
    whole = tokenizer.batch_decode([np.asarray(flat, np.int32)], skip_special_tokens=True)[0]
    out, parts = io.StringIO(), []
    with contextlib.redirect_stdout(out):
        for chunk in chunks:
            tell(np.asarray(chunk, np.int32))
            parts.append(out.getvalue())
        finish(whole)
    return parts, out.getvalue(), whole


EXAMPLES = settings(max_examples=150)


@pytest.mark.parametrize("tokenizer", [TEXT, FALLBACK], ids=["bytes", "fallback"])
@EXAMPLES
@given(data=st.data())
def test_the_stream_adds_up_to_the_text_whatever_the_tokens(tokenizer, data):
    """Also for bytes that are no UTF-8, which a sampled model may well write."""
    chunks = data.draw(streams(tokenizer))
    parts, printed, whole = follow(tokenizer, chunks)
    assert printed == whole + "\n"
    for part in parts:
        assert whole.startswith(part) and not part.endswith("\ufffd")


@EXAMPLES
@given(stream=spoken())
def test_the_stream_is_behind_by_no_more_than_half_a_character(stream):
    text, chunks = stream
    parts, printed, _ = follow(TEXT, chunks)
    assert printed == text + "\n"
    sent = text.encode()
    for i, part in enumerate(parts):
        n = sum(map(len, chunks[: i + 1]))
        assert part == codecs.getincrementaldecoder("utf-8")().decode(sent[:n])


def test_a_run_of_byte_tokens_waits_for_its_end():
    """Such a run is read whole: with a broken byte behind it, a letter is no letter any more."""
    letter, broken, word, end = map(
        FALLBACK.get_vocab().__getitem__, ("<0x41>", "<0xE2>", "▁the", "</s>")
    )
    assert FALLBACK.decode([letter]) == "A"
    assert FALLBACK.decode([letter, broken]) == "\ufffd\ufffd"
    assert command.settled(FALLBACK, [word, letter]) == "the"
    assert command.settled(FALLBACK, [word, letter, word]) == "theA the"
    assert command.settled(FALLBACK, [word, letter, end]) == "the"


def test_a_decoder_that_takes_text_back_still_shows_the_whole(capsys):
    class Fickle:
        all_special_ids = ()

        def convert_ids_to_tokens(self, i):
            return str(i)

        def decode(self, tokens, skip_special_tokens):
            return "ab" if len(tokens) == 1 else "xyz"

    tell, finish = command._printer(Fickle())
    tell(np.asarray([1]))
    tell(np.asarray([2]))
    finish("xyz")
    assert capsys.readouterr().out == "ab\nxyz\n"
