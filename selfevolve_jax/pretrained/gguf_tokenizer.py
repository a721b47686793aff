"""The tokenizer that a GGUF file carries in its metadata, as a transformers fast tokenizer.

llama.cpp names the rule that cuts a text before the merges ("pre"); the four known here are built
from the parts of `tokenizers`. transformers can read GGUF tokenizers too, but only where torch is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfevolve_jax.errors import UserError

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5  # llama.cpp's token types
_ENDS = ("eos", "eot", "eom")  # end of sequence, of a turn, of a message


def _words(digits: str) -> str:
    """GPT-4's rule for cutting a text into words, with so many digits together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# Name -> (rule, expression that it splits by). Llama 3 goes by several names.
_LLAMA3 = ("llama3", _words(r"\p{N}{1,3}"))
PRE_TOKENIZERS: dict[str, tuple[str, str]] = {
    "gpt-2": ("gpt2", ""),
    "smollm": ("digits", ""),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": ("qwen2", _words(r"\p{N}")),
}


def read_tokenizer(fields: Mapping[str, Any], where: str) -> tuple[Any, tuple[int, ...]]:
    """(tokenizer, stop tokens) from the metadata `fields` of the file `where`, by key.

    Stop tokens are the ids given for the end of a sequence, a turn and a message. UserError for a
    kind of tokenizer or a pre-tokenizer that is not known here, for lists that do not fit each
    other, and if nothing would end a text.
    """
    kind, pre = (_get(fields, key, str, where, None) for key in ("model", "pre"))
    if kind != "gpt2":
        raise UserError(
            f"{where}: tokenizer {kind!r} is not supported; only byte-level BPE (gpt2) is. Convert "
            "the model's Hugging Face folder instead."
        )
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{where}: pre-tokenizer {pre!r} is not supported; supported are "
            f"{', '.join(PRE_TOKENIZERS)}. Convert the model's Hugging Face folder instead."
        )
    if _get(fields, "add_space_prefix", bool, where, False):
        raise UserError(f"{where}: tokenizer.ggml.add_space_prefix is not supported for BPE.")
    tokens = _get(fields, "tokens", list, where)
    types = _get(fields, "token_type", list, where, [_NORMAL] * len(tokens))
    merges = [tuple(m.split(" ", 1)) for m in _get(fields, "merges", list, where)]
    if len(types) != len(tokens):
        raise UserError(f"{where}: {len(tokens)} tokens, but {len(types)} token types. Damaged.")
    ids = {n: _special_id(fields, n, len(tokens), where) for n in (*_ENDS, "bos", "unk", "pad")}
    # Unused tokens only fill the embedding up to a round number.
    used = [int(kind) != _UNUSED or i in ids.values() for i, kind in enumerate(types)]
    vocab = {token: i for i, (token, taken) in enumerate(zip(tokens, used, strict=True)) if taken}
    strange = [m for m in merges if len(m) != 2 or any(p not in vocab for p in (*m, "".join(m)))]
    if strange:
        raise UserError(
            f"{where}: the merge {' '.join(strange[0])!r} is of unknown tokens. Damaged."
        )
    special = {name: None if i is None else tokens[i] for name, i in ids.items()}
    stops = tuple(dict.fromkeys(i for i in (ids[name] for name in _ENDS) if i is not None))
    if not stops:
        raise UserError(f"{where}: no tokenizer.ggml.eos_token_id, so nothing would end a text.")
    # Llama 3 texts begin with a BOS even where the file does not say so (llama.cpp's rule).
    add_bos = _get(fields, "add_bos_token", bool, where, PRE_TOKENIZERS[pre] is _LLAMA3)
    add_eos = _get(fields, "add_eos_token", bool, where, False)
    put = ((add_bos, "bos"), (add_eos, "eos"))
    around = [special[name] if wanted else None for wanted, name in put]
    inner = _bpe(vocab, merges, pre, around)
    by_type = [(t, int(of)) for t, of in zip(tokens, types, strict=True)]
    return _wrap(inner, by_type, special, fields.get("tokenizer.chat_template")), stops


def _bpe(vocab: dict[str, int], merges: list[tuple], pre: str, around: Sequence[str | None]) -> Any:
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    rule, expression = PRE_TOKENIZERS[pre]
    inner = Tokenizer(models.BPE(vocab, merges, ignore_merges=rule == "llama3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression)
    first: list[Any] = []
    if rule == "digits":
        first = [pre_tokenizers.Digits(individual_digits=True)]
    elif expression:
        first = [pre_tokenizers.Split(Regex(expression), "isolated")]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*first, level])  # pyright: ignore
    inner.decoder = decoders.ByteLevel()
    if rule == "qwen2":
        inner.normalizer = normalizers.NFC()
    ends = processors.ByteLevel(trim_offsets=False)
    bos, eos = around
    if bos or eos:
        named = [(token, vocab[token]) for token in dict.fromkeys(around) if token]
        single = " ".join(part for part in (bos, "$A", eos) if part)
        pair = " ".join(f"{p}:{n}" for n in (0, 1) for p in (bos, "$" + "AB"[n], eos) if p)
        template = processors.TemplateProcessing(single=single, pair=pair, special_tokens=named)
        ends = processors.Sequence([ends, template])  # pyright: ignore
    inner.post_processor = ends
    return inner


def _wrap(inner: Any, tokens: list[tuple[str, int]], special: dict, template: Any) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    control = [t for t, kind in tokens if kind in (_CONTROL, _UNKNOWN)]
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    inner.add_tokens([AddedToken(t, normalized=False) for t, kind in tokens if kind == _USER])
    named = {f"{name}_token": special[name] for name in ("bos", "eos", "unk", "pad")}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **named,
        extra_special_tokens=[t for t in control if t not in named.values()],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


_LONG_NAMES = {"unk": "unknown", "pad": "padding"}


def _special_id(fields: Mapping[str, Any], name: str, known: int, where: str) -> int | None:
    key = f"{_LONG_NAMES.get(name, name)}_token_id"
    i = _get(fields, key, int, where, None)
    if i is not None and not 0 <= i < known:
        raise UserError(f"{where}: tokenizer.ggml.{key} is {i} of {known} tokens. Damaged.")
    return i


_REQUIRED: Any = object()


def _get(
    fields: Mapping[str, Any], name: str, kind: type, where: str, default: Any = _REQUIRED
) -> Any:
    key = f"tokenizer.ggml.{name}"
    value = fields.get(key, default)
    if value is _REQUIRED:
        raise UserError(
            f"{where}: {key} is missing, so the file holds no tokenizer that can be read."
        )
    if value is not default and not isinstance(value, kind):
        raise UserError(f"{where}: {key} is {value!r:.60}, which is no {kind.__name__}. Damaged.")
    return value
