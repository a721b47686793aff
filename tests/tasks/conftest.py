"""A small tokenizer built here: nothing is downloaded."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def _build(template=None, *, adds="{bos} $A {eos}", bos="<s>", eos="</s>"):
    """One token a character; `adds` is what its post-processor puts round a text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<turn>": 3}
    for char in [chr(i) for i in range(32, 127)] + ["\n"]:
        vocab[char] = len(vocab)
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single=adds.format(bos=bos, eos=eos), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        additional_special_tokens=["<turn>"],
        chat_template=template,
    )


@pytest.fixture(scope="session")
def char_tokenizer():
    return _build
