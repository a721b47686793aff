"""How far the text of a growing answer is settled, so that it can be shown as it comes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# A byte that a tokenizer without a token for its character writes, as Llama 2's does.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def settled(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The part of the tokens' text that no further token can change: it stops before a character of
    which only some bytes are there. Special tokens have no text, as in `decode`."""
    n, special = len(tokens), set(tokenizer.all_special_ids)
    while n and (
        tokens[n - 1] in special
        # A row of such bytes is read as a whole, and the next may make it another text.
        or _BYTE.fullmatch(tokenizer.convert_ids_to_tokens(int(tokens[n - 1])) or "")
    ):
        n -= 1
    text = tokenizer.decode([int(t) for t in tokens[:n]], skip_special_tokens=True)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")
