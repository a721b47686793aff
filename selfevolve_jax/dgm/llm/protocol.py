"""What of OpenAI's chat completions is let through from inside a sandbox, and how it is answered.

Whoever asks is not trusted. So nothing passes that would make the model's server reach for the network
(pictures by address, search tools), run a template or a grammar of the asker's, or answer more than
once; and what is not known is refused rather than passed on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from selfevolve_jax.llm.endpoint import Answer

LARGEST_REQUEST = 4 << 20  # bytes
_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE = frozenset(("role", "content", "name", "tool_calls", "tool_call_id"))
_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_IGNORED = ("model", "user", "stream", "stream_options", "n", "max_completion_tokens")
_PASSED = (
    *("messages", "max_tokens", *_RANGES, "seed", "stop", "response_format"),
    *("tools", "tool_choice", "parallel_tool_calls"),
)


class Bad(Exception):
    """A request that is not passed on. The message is for whoever sent it."""


def read(body: bytes, most_tokens: int) -> tuple[dict[str, Any], bool]:
    """(the request to pass on, whether it wants a stream). Tokens above most_tokens become that many;
    everything else that is out of bounds is Bad."""
    try:
        request = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Bad(f"the body is no JSON: {error}") from error
    if not isinstance(request, dict):
        raise Bad("the body is no JSON object")
    request = {name: value for name, value in request.items() if value is not None}
    if unknown := sorted(request.keys() - set(_PASSED + _IGNORED)):
        known = ", ".join(sorted(_PASSED + _IGNORED))
        raise Bad(f"not taken here: {', '.join(unknown)[:200]}. Known are {known}")
    if request.get("n", 1) != 1:
        raise Bad("n must be 1")
    _messages(request.get("messages"))
    _options(request)
    _tools(request)
    passed = {name: request[name] for name in _PASSED if name in request}
    for name in ("max_tokens", "max_completion_tokens"):
        if name in request:
            if type(request[name]) is not int or request[name] < 1:
                raise Bad(f"{name} must be a whole number of at least 1")
            passed["max_tokens"] = min(request[name], most_tokens)
    return passed, request.get("stream") is True


def completion(answer: Answer, model: str) -> dict[str, Any]:
    """The answer as a chat completion. model: what whoever asked may know it by."""
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "message": answer.message, "finish_reason": answer.finish}],
        "usage": {
            "prompt_tokens": answer.tokens_in,
            "completion_tokens": answer.tokens_out,
            "total_tokens": answer.tokens_in + answer.tokens_out,
        },
    }


def as_stream(whole: Mapping[str, Any]) -> bytes:
    """A completion as server-sent events: one chunk with all of it."""
    (choice,) = whole["choices"]
    delta = dict(choice["message"])
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": i, **c} for i, c in enumerate(delta["tool_calls"])]
    chunk = {**whole, "object": "chat.completion.chunk"}
    chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}]
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()


def error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise Bad("messages must be a list that is not empty")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise Bad(f"{where} must be an object with one of the roles {', '.join(_ROLES)}")
        if unknown := sorted(message.keys() - _MESSAGE):
            raise Bad(f"{where} has fields that are not taken here: {', '.join(unknown)[:200]}")
        content = message.get("content")
        if not isinstance(content, str | None) and not (
            isinstance(content, list) and all(map(_is_text, content))
        ):
            raise Bad(f"{where}.content must be a text, or parts of type text")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list) or not all(map(_is_function, calls)):
            raise Bad(f"{where}.tool_calls must be a list of calls of type function")


def _options(request: Mapping[str, Any]) -> None:
    for name, (low, high) in _RANGES.items():
        value = request.get(name, low)
        if type(value) not in (int, float) or not low <= value <= high:
            raise Bad(f"{name} must be a number from {low} to {high}")
    seed = request.get("seed", 0)
    if type(seed) is not int or not -(2**63) <= seed < 2**63:
        raise Bad("seed must be a whole number of 64 bits")
    stop = request.get("stop", "")
    stops = stop if isinstance(stop, list) else [stop]
    if len(stops) > 4 or not all(isinstance(text, str) for text in stops):
        raise Bad("stop must be a text or up to 4 of them")
    if request.get("response_format", {"type": "text"}) not in (
        {"type": "text"},
        {"type": "json_object"},
    ):
        raise Bad('response_format must be {"type": "text"} or {"type": "json_object"}')


def _tools(request: Mapping[str, Any]) -> None:
    tools = request.get("tools", [])
    if not isinstance(tools, list) or not all(map(_is_function, tools)):
        raise Bad("tools must be a list of tools of type function")
    choice = request.get("tool_choice", "auto")
    if choice not in ("none", "auto", "required") and not _is_function(choice):
        raise Bad("tool_choice must be none, auto, required or a function")
    if type(request.get("parallel_tool_calls", True)) is not bool:
        raise Bad("parallel_tool_calls must be true or false")


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and part.keys() == {"type", "text"}
        and part["type"] == "text"
        and isinstance(part["text"], str)
    )


def _is_function(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("type") == "function"
        and isinstance(value.get("function"), dict)
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
