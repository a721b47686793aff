"""Tokens in, the text that may be shown so far: stop strings, tool calls, characters of many tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from selfevolve_jax.settled import settled

# The form in which Qwen2.5, Qwen3 and the Hermes models write a call.
OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Answer:
    """One sample as it grows. What it shows, and where a stop string ends it, does not depend on how
    its tokens come in pieces.

    tokens: those of the answer: up to the one that completed a stop string, or to a stop token, which
    is counted too. finish: None while it goes on. text: the whole, without the stop string and what
    stood after it; whole only once finished. content, calls: the text as a turn of a chat; without
    `tools` there are no calls.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), tools: bool = False) -> None:
        self._tokenizer, self._stops, self._tools = tokenizer, stops, tools
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length"] | None = None
        self.text = self.content = ""
        self._shown = 0  # characters of the content
        self.calls: list[dict[str, str]] = []

    def feed(self, tokens: Sequence[int], ended: Literal["", "stop", "length"] = "") -> str:
        """Takes new tokens; the text that may be shown beyond what was. When it finishes, all that is
        left of `content`."""
        first = len(self.tokens)
        self.tokens += tokens
        self.finish = ended or None
        self.text = self._read(len(self.tokens))
        if self._cut_at(self.text) is not None:
            n = first
            while (cut := self._cut_at(self._read(n))) is None:
                n += 1
            self.finish, self.text = "stop", self._read(n)[:cut]
            del self.tokens[n:]
        if self.finish is None:
            self.content = self._without_held_back(self.text)
        else:
            self.content, self.calls = parse_calls(self.text) if self._tools else (self.text, [])
        new = self.content[self._shown :]
        self._shown += len(new)
        return new

    def _read(self, n: int) -> str:
        """The text of the first n tokens; where the answer goes on after them, what is settled."""
        if self.finish is None or n < len(self.tokens):
            return settled(self._tokenizer, self.tokens[:n])
        return self._tokenizer.decode(self.tokens, skip_special_tokens=True)

    def _cut_at(self, text: str) -> int | None:
        """Where the first stop string begins."""
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found, default=None)

    def _without_held_back(self, text: str) -> str:
        """The text without what may yet turn out to be a stop string's or a call's."""
        if self._tools:
            text = text.split(OPEN)[0]
        marks = [*self._stops, *([OPEN] if self._tools else [])]
        for size in range(min(len(text), max(map(len, marks), default=1) - 1), 0, -1):
            if any(mark.startswith(text[-size:]) for mark in marks):
                text = text[:-size]
                break
        return text.rstrip() if self._tools else text


def parse_calls(text: str) -> tuple[str, list[dict[str, str]]]:
    """(the text outside of calls, calls as {"name", "arguments": JSON}). A text in which one call is no
    JSON object with a name and arguments is text as a whole; so is one without calls. The closing mark
    may lack at the end."""
    outside, calls, at = [], [], 0
    while (start := text.find(OPEN, at)) >= 0:
        outside.append(text[at:start])
        begin = start + len(OPEN)
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        try:
            call, end = json.JSONDecoder().raw_decode(text, begin)
            name, arguments = call["name"], call.get("arguments", {})
            if not isinstance(name, str) or not isinstance(arguments, dict):
                return text, []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return text, []
        rest = text[end:].lstrip()
        if rest and not rest.startswith(CLOSE):
            return text, []
        at = len(text) - len(rest) + (len(CLOSE) if rest else 0)
        calls.append({"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)})
    if not calls:
        return text, []
    first, *others = [*outside, text[at:]]
    parts = [first.rstrip(), *(part.strip() for part in others)]
    return "\n".join(part for part in parts if part), calls
