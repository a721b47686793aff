"""Turns of a conversation in, the tokens that the model goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from selfevolve_jax.serve.protocol import Refused
from selfevolve_jax.tasks.prompts import Problem, tokenize_rows

ROLES = ("system", "developer", "user", "assistant", "tool")


def chat_tokens(
    tokenizer: Any, messages: Any, tools: Sequence[Mapping[str, Any]] = ()
) -> list[int]:
    """The conversation as the tokenizer's own chat template writes it, up to where the assistant
    speaks. Refused for messages of another form than OpenAI's, and for those the template refuses."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        raise Refused(
            "this model's tokenizer has no chat template. Use /v1/completions.", "messages"
        )
    turns = _turns(messages)

    def render(**options: Any) -> str:
        return tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **options
        )

    try:
        text = render(tools=list(tools)) if tools else render()
        if tools and text == render():
            raise Refused("this model's chat template takes no tools.", "tools")
    except (TemplateError, TypeError, ValueError) as error:
        raise Refused(f"the model's chat template refuses this: {error}", "messages") from error
    return _checked(tokenizer, tokenizer(_encodable(text), add_special_tokens=False)["input_ids"])


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """A plain text, after the special tokens that the tokenizer puts before one."""
    rows, _ = tokenize_rows(
        tokenizer, [Problem(0, _encodable(text))], name="prompt", max_prompt_tokens=1 << 30
    )
    return _checked(tokenizer, list(rows[0].prompt_tokens))


def _encodable(text: str) -> str:
    """Refused for half surrogates, which JSON can write and no text holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"the text is no Unicode: {error.reason}.", "messages") from error
    return text


def _checked(tokenizer: Any, tokens: list[int]) -> list[int]:
    """Refused for what the tokenizer has no token for: the model would read another text."""
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in tokens:
        raise Refused("the model's tokenizer does not know a part of the text. Leave it out.")
    return tokens


def _turns(messages: Any) -> list[dict[str, Any]]:
    """As templates take them: contents are strings, a call's arguments an object."""
    if not isinstance(messages, list) or not messages:
        raise Refused("messages must be a list of at least one message.", "messages")
    turns = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Refused(
                f"{where} must be an object whose role is one of {', '.join(ROLES)}.", where
            )
        role = "system" if message["role"] == "developer" else message["role"]
        turn = {"role": role, "content": _content(message, where)}
        for name in ("name", "tool_call_id"):
            if message.get(name) is not None:
                if not isinstance(message[name], str):
                    raise Refused(f"{where}.{name} must be a string.", f"{where}.{name}")
                turn[name] = message[name]
        if message.get("tool_calls"):
            turn["tool_calls"] = _calls(message, where)
        turns.append(turn)
    return turns


def _content(message: dict[str, Any], where: str) -> str:
    content, where = message.get("content"), f"{where}.content"
    if content is None and message["role"] == "assistant":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(f"{where} must be a string or a list of parts.", where)
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("text", "refusal"):
            raise Refused(f"{where} holds a part that is no text; only text is served.", where)
        if not isinstance(part.get(part["type"]), str):
            raise Refused(f"{where} holds a part of text without a string.", where)
    return "".join(part[part["type"]] for part in content)


def _calls(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    where, calls = f"{where}.tool_calls", []
    if message["role"] != "assistant" or not isinstance(message["tool_calls"], list):
        raise Refused(f"{where} must be a list, in a message of the assistant.", where)
    for call in message["tool_calls"]:
        try:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Refused(
                f"{where}: each needs a function with a name, and arguments that are a JSON object.",
                where,
            ) from error
        function = {"name": name, "arguments": arguments}
        calls.append({"id": str(call.get("id")), "type": "function", "function": function})
    return calls
