"""Tokenizers rebuilt from GGUF metadata: each rule by hand, round trips, and the saved files."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from selfevolve_jax.pretrained.gguf_tokenizer import PRE_TOKENIZERS, read_tokenizer

# Every byte, what a few merges make, and a word that no merge makes.
MERGES = ["1 2", "12 3", "Ġ 1", "Ġ Ġ", "a b", "Ġ ab", "' s", "Ċ Ċ"]
TOKENS = [*sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES), "word"]
SPECIAL = ["<bos>", "<end>", "<turn>", "<unk>", "<tool>", "[PAD]"]
FIELDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": TOKENS + SPECIAL,
    "tokenizer.ggml.token_type": [1] * len(TOKENS) + [3, 3, 3, 2, 4, 5],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": len(TOKENS),
    "tokenizer.ggml.eos_token_id": len(TOKENS) + 1,
    "tokenizer.ggml.eot_token_id": len(TOKENS) + 2,
    "tokenizer.ggml.unknown_token_id": len(TOKENS) + 3,
    "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<turn>{% endfor %}",
}


def build(pre, **changed):
    changed = {f"tokenizer.ggml.{k}": v for k, v in changed.items()}
    return read_tokenizer(FIELDS | {"tokenizer.ggml.pre": pre} | changed, "m.gguf")


def pieces(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        # Digits: together, three at a time from the left, or alone; a blank goes with what follows
        # it under GPT-2's rule unless the digits were set apart before.
        ("gpt-2", "1234", ["123", "4"]),
        ("gpt-2", "x 1a", ["x", "Ġ1", "a"]),
        ("smollm", "1234", ["1", "2", "3", "4"]),
        ("smollm", "x 12", ["x", "Ġ", "1", "2"]),
        ("smollm", "x ab", ["x", "Ġab"]),
        ("llama-bpe", "1231234", ["123", "123", "4"]),
        ("llama-bpe", "x 12", ["x", "Ġ", "12"]),
        ("llama3", "x 12", ["x", "Ġ", "12"]),
        ("qwen2", "1234", ["1", "2", "3", "4"]),
        ("qwen2", "x 12", ["x", "Ġ", "1", "2"]),
        # Two blanks before a word: one stays behind.
        ("gpt-2", "x  ab", ["x", "Ġ", "Ġab"]),
        ("qwen2", "x  ab", ["x", "Ġ", "Ġab"]),
        # Line ends cling to punctuation under GPT-4's rule alone.
        ("gpt-2", "ab's\n\n", ["ab", "'s", "ĊĊ"]),
        ("llama-bpe", "AB'S", ["A", "B", "'", "S"]),
        # A whole word that is a token is taken as it is by Llama 3, whatever the merges say.
        ("llama-bpe", "word", ["word"]),
        ("gpt-2", "word", ["w", "o", "r", "d"]),
        ("qwen2", "word", ["w", "o", "r", "d"]),
        # Special tokens are found in a text; unused ones are not known.
        ("gpt-2", "a<turn>b<tool>", ["a", "<turn>", "b", "<tool>"]),
        ("gpt-2", "[PAD]", ["[", "P", "A", "D", "]"]),
    ],
)
def test_each_rule_by_hand(pre, text, expected):
    assert pieces(build(pre)[0], text) == expected


def test_qwen2_composes_characters_first():
    apart, whole = "e\u0301", "\u00e9"
    assert pieces(build("qwen2")[0], apart) == pieces(build("qwen2")[0], whole)
    assert pieces(build("gpt-2")[0], apart) != pieces(build("gpt-2")[0], whole)


@settings(max_examples=100)
@given(st.sampled_from(sorted(PRE_TOKENIZERS)), st.text(max_size=30))
def test_any_text_comes_back(pre, text):
    tokenizer = _cached(pre)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    wanted = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
    assert tokenizer.decode(ids) == wanted


_built = {}


def _cached(pre):
    if pre not in _built:
        _built[pre] = build(pre)[0]
    return _built[pre]


def test_stop_tokens_are_all_ends_that_the_file_names():
    eos = len(TOKENS) + 1
    assert build("gpt-2")[1] == (eos, eos + 1)
    assert build("gpt-2", eot_token_id=None)[1] == (eos,)
    assert build("gpt-2", eot_token_id=eos, eom_token_id=3)[1] == (eos, 3)


@pytest.mark.parametrize(
    ("pre", "changed", "around"),
    [
        ("gpt-2", {}, ([], [])),
        ("gpt-2", {"add_bos_token": True}, (["<bos>"], [])),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, (["<bos>"], ["<end>"])),
        ("llama-bpe", {}, (["<bos>"], [])),
        ("llama-bpe", {"add_bos_token": False}, ([], [])),
    ],
)
def test_what_stands_round_a_text(pre, changed, around):
    tokenizer = build(pre, **changed)[0]
    read = tokenizer.convert_ids_to_tokens(tokenizer("ab")["input_ids"])
    assert read == [*around[0], "ab", *around[1]]


def test_the_saved_tokenizer_is_the_same(tmp_path):
    for pre in PRE_TOKENIZERS:
        tokenizer = build(pre, add_bos_token=True)[0]
        tokenizer.model_max_length = 77
        tokenizer.save_pretrained(tmp_path / pre)
        again = AutoTokenizer.from_pretrained(tmp_path / pre)
        text = "<bos>ab 1234 e\u0301 word's<turn>\n\n<tool>\u2153 [PAD]"
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert again.get_vocab() == tokenizer.get_vocab()
        for name in ("bos", "eos", "unk", "pad"):
            assert getattr(again, f"{name}_token") == getattr(tokenizer, f"{name}_token")
        assert (again.bos_token, again.eos_token, again.unk_token) == ("<bos>", "<end>", "<unk>")
        assert again.pad_token is None and again.model_max_length == 77
        turns = [{"role": "user", "content": "ab"}]
        assert again.apply_chat_template(turns, tokenize=False) == "ab<turn>"
        ids = again("a<turn>b<tool>", add_special_tokens=False)["input_ids"]
        assert again.decode(ids, skip_special_tokens=True) == "ab<tool>"
        assert again.convert_tokens_to_ids("<turn>") in again.all_special_ids
