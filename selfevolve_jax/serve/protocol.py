"""What a request of OpenAI's completions and chat completions asks for.

A known parameter of the wrong type or outside its range is refused, as is one that would change the
answer and cannot be followed here; what is unknown is ignored, as vLLM does.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfevolve_jax.errors import UserError
from selfevolve_jax.rollout.sampling import Sampling, check_sampling

MOST_CHOICES = 128
MOST_LOGPROBS = 20
# Parameters that would change what comes out, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "echo": (False,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "best_of": (1,),
}


class Refused(Exception):
    """An error of the client's, as OpenAI words it: message, param, HTTP status, code."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> dict[str, Any]:
        return error_body(self.message, "invalid_request_error", self.param, self.code)


def error_body(
    message: str, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Asked:
    """A request. prompt: a chat's messages (`chat.chat_tokens` reads them), or a list of prompts, each
    a text or a list of tokens. max_tokens: None is the rest of the context. logprobs: None for none,
    else how many of the likeliest tokens beside the drawn one. tools: () also where `tool_choice` is
    "none"."""

    chat: bool
    prompt: Any
    n: int
    sampling: Sampling
    seed: int
    max_tokens: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    stream: bool
    include_usage: bool
    tools: tuple[Mapping[str, Any], ...] = ()
    parallel_calls: bool = True


def parse(body: Any, *, chat: bool, model: str) -> Asked:
    """The request of a JSON body. model: the name that is served. Refused for what is not right."""
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object.")
    name = _get(body, "model", str, "a string", model)
    if name != model:
        raise Refused(
            f"model {name!r} is not served here; {model!r} is.", "model", 404, "model_not_found"
        )
    n = _integer(body, "n", 1, 1, MOST_CHOICES)
    for other, neutral in _NEUTRAL.items():
        given = body.get(other)
        if given is not None and given not in neutral and not (other == "best_of" and given == n):
            raise Refused(f"{other}={given!r} is not supported. Leave it out.", other)
    stream = _get(body, "stream", bool, "true or false", False)
    options = _get(body, "stream_options", dict, "an object", {})
    if options and not stream:
        raise Refused("stream_options needs stream to be true.", "stream_options")
    limits = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    given = [_integer(body, limit, None, 1) for limit in limits]
    default = None if chat else 16  # as OpenAI's
    return Asked(
        chat=chat,
        prompt=body.get("messages") if chat else _prompts(body.get("prompt")),
        n=n,
        sampling=_sampling(body),
        seed=_seed(body),
        max_tokens=next((limit for limit in given if limit is not None), default),
        stop=_stop(body),
        logprobs=_logprobs(body, chat),
        stream=stream,
        include_usage=_get(options, "include_usage", bool, "true or false", False),
        tools=_tools(body) if chat else (),
        parallel_calls=_get(body, "parallel_tool_calls", bool, "true or false", True),
    )


def check_length(prompt: int, max_tokens: int | None, context: int) -> int:
    """Tokens that the answer may have. Refused where they and the prompt do not fit the context."""
    if prompt < 1:
        raise Refused("the prompt is empty; there is nothing to go on from.")
    if prompt + (max_tokens or 1) > context:
        raise Refused(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{prompt + (max_tokens or 1)} tokens ({prompt} in the prompt, {max_tokens or 1} for the "
            "answer). Please reduce the length of either.",
            code="context_length_exceeded",
        )
    return context - prompt if max_tokens is None else max_tokens


def _get(body: Mapping[str, Any], name: str, kind: type, said: str, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f"{name}={value!r} must be {said}.", name)
    return value


def _integer(
    body: Mapping[str, Any], name: str, default: Any, least: int, most: int | None = None
) -> Any:
    value = _get(body, name, int, "a whole number", default)
    if value is not None and (value < least or (most is not None and value > most)):
        upper = "" if most is None else f" and at most {most}"
        raise Refused(f"{name}={value} must be at least {least}{upper}.", name)
    return value


def _sampling(body: Mapping[str, Any]) -> Sampling:
    values: dict[str, Any] = {"top_k": max(_integer(body, "top_k", 0, -1), 0)}  # −1 is off, too
    for name, default in (("temperature", 1.0), ("top_p", 1.0), ("min_p", 0.0)):
        value = body.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"{name}={value!r} must be a number.", name)
        if abs(value) > 1e6 or not math.isfinite(value):
            raise Refused(f"{name}={value!r} must be a number below a million.", name)
        values[name] = float(value)
    values["top_k"] = min(values["top_k"], 1 << 30)
    sampling = Sampling(**values)
    try:
        check_sampling(sampling)
    except UserError as error:
        name = str(error).removeprefix("sampling.").partition("=")[0]
        raise Refused(str(error).removeprefix("sampling."), name) from error
    return sampling


def _seed(body: Mapping[str, Any]) -> int:
    """The lowest 32 bits, which is what a key of `jax.random` is made of here."""
    seed = _integer(body, "seed", None, -(1 << 63), (1 << 63) - 1)
    return secrets.randbits(32) if seed is None else seed % (1 << 32)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise Refused("stop must be a string or a list of strings, none of them empty.", "stop")
    return tuple(stops)


def _logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return _integer(body, "logprobs", None, 0, MOST_LOGPROBS)
    top = _integer(body, "top_logprobs", None, 0, MOST_LOGPROBS)
    wanted = _get(body, "logprobs", bool, "true or false", False)
    if top and not wanted:
        raise Refused("top_logprobs needs logprobs to be true.", "top_logprobs")
    return (top or 0) if wanted else None


def _tools(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools = _get(body, "tools", list, "a list", [])
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or tool.get("type") != "function"
            or not isinstance(function.get("name"), str)
        ):
            raise Refused(
                'each of tools must be {"type": "function", "function": {"name": …}}.', "tools"
            )
    choice = body.get("tool_choice")
    if choice not in (None, "none", "auto"):
        raise Refused(f"tool_choice={choice!r} is not supported; none and auto are.", "tool_choice")
    return () if choice == "none" else tuple(tools)


def _prompts(prompt: Any) -> list[Any]:
    """Texts and lists of tokens."""

    def are(kind: type, values: Any) -> bool:
        return isinstance(values, list) and all(
            isinstance(v, kind) and not isinstance(v, bool) for v in values
        )

    if isinstance(prompt, str) or (prompt and are(int, prompt)):
        return [prompt]
    if prompt and (are(str, prompt) or (are(list, prompt) and all(are(int, p) for p in prompt))):
        if len(prompt) > MOST_CHOICES:
            raise Refused(f"prompt holds {len(prompt)} texts; at most {MOST_CHOICES}.", "prompt")
        return prompt
    raise Refused(
        "prompt must be a string, a list of strings, a list of tokens or a list of such lists.",
        "prompt",
    )
