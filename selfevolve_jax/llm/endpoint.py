"""One language model behind an endpoint: a request in, an answer with its tokens out.

What may pass (429, 408, 409, 425, 5xx, time-outs, broken connections, half a reply, a reply that is no
completion) is tried again, with pauses; `Down` when it did not pass. What will not (a wrong key,
address or model) is a UserError at once. What the endpoint refuses of this one request is `Refused`.

Tokens are those that the endpoint counts; where it counts none they are estimated, 4 bytes a token. Of
tries that failed nobody knows what they cost: they count as nothing.
"""

from __future__ import annotations

import datetime
import email.utils
import importlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

from selfevolve_jax.errors import UserError
from selfevolve_jax.llm.config import ADDRESSES, ModelConfig

LARGEST_REPLY = 32 << 20  # bytes of a whole reply; one that is longer is given up
LARGEST_TEXT = 1 << 20  # bytes of an answer's text; the rest is cut off
_WAIT_AT_MOST_S = 120.0
_AGAIN = frozenset((408, 409, 425, 429))  # and all from 500
_SHORTEST_SECRET = 8  # a "key" such as "none", for servers that ask for any, would blot out words
PLAIN = {"messages": [{"role": "user", "content": "Answer with OK."}], "max_tokens": 16}
_EXTRAS = {"openai": "dgm", "anthropic": "anthropic"}


class Failed(Exception):
    """A call without an answer. attempts: the tries that it took. doubtful: it may be this request that
    the endpoint cannot take, and not the endpoint that is wrong; one that is plain would tell."""

    def __init__(self, reason: str, doubtful: bool = False) -> None:
        super().__init__(reason)
        self.attempts, self.doubtful = 1, doubtful


class Down(Failed):
    """The endpoint gave no answer in all its tries."""


class Refused(Failed, UserError):
    """The endpoint answers, but not this request: a prompt that is too long, an option it lacks. said:
    the endpoint's own words, without its address."""

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(reason)
        self.said = said or reason


class Misplaced(Failed, UserError):
    """No request will be answered: the key, the address, the model or the account is wrong."""


class _Again(Exception):
    """This try failed in a way that the next may not. wait_s: what the endpoint asks for. doubtful: as
    Failed."""

    def __init__(self, reason: str, wait_s: float = 0.0, doubtful: bool = True) -> None:
        super().__init__(reason)
        self.wait_s, self.doubtful = wait_s, doubtful


@dataclass(frozen=True)
class Answer:
    """message: as OpenAI has it: {"role": "assistant", "content": text or None, maybe "tool_calls"}.
    finish: "stop", "length", "tool_calls", … estimated: the endpoint did not count the tokens. cut: the
    text was longer than LARGEST_TEXT. attempts: tries, this one included. seconds: of all of them."""

    message: Mapping[str, Any]
    finish: str
    tokens_in: int
    tokens_out: int
    estimated: bool
    cut: bool
    attempts: int
    seconds: float

    @property
    def text(self) -> str:
        """May be empty: a model may say nothing, or call tools alone."""
        return self.message["content"] or ""


class Stop(Protocol):
    """A threading.Event, or what does as one."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Endpoint:
    """May be used from many threads. UserError if the client is not installed, or a key is missing."""

    def __init__(self, config: ModelConfig) -> None:
        if not config.model.strip():
            raise UserError("model is empty. Give the model's name at its endpoint.")
        self.config = config
        self._key = _secret(config)
        self._sdk = _import(config.api)
        self._client = _client(self._sdk, config, self._key)
        # Without a key none is sent: neither the client's placeholder, nor one that it found itself.
        omit = self._sdk.Omit()
        self._headers = {} if self._key else {"Authorization": omit, "X-Api-Key": omit}

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        attempts: int | None = None,
        stop: Stop | None = None,
    ) -> Answer:
        """request: "messages" and other fields of OpenAI's chat completions; the model's name and what
        the config sets are added. stop: once set, there are no further tries. Raises Down, Refused,
        UserError."""
        import tenacity

        body = self._body(request)
        attempts = attempts or self.config.attempts
        # tenacity asks for an Event, and uses no more of it than a Stop has
        stopped: Any = stop or threading.Event()
        backoff = self.config.backoff_s
        growing = tenacity.wait_exponential(backoff) + tenacity.wait_random(0, backoff / 4)

        def wait(state: tenacity.RetryCallState) -> float:
            assert state.outcome is not None
            asked = getattr(state.outcome.exception(), "wait_s", 0.0)
            return min(max(asked, growing(state)), _WAIT_AT_MOST_S)

        start, tries = time.monotonic(), 0

        def once() -> dict[str, Any]:
            nonlocal tries
            tries += 1
            return self._read(self._post(body), body)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_when_event_set(stopped),
            wait=wait,
            retry=tenacity.retry_if_exception_type(_Again),
            sleep=tenacity.sleep_using_event(stopped),
            reraise=True,
        )
        try:
            fields = retrying(once)
        except _Again as error:
            down = Down(f"{self._named()}: {error}", error.doubtful)
            down.attempts = tries
            raise down from error
        except Failed as error:
            error.attempts = tries
            raise
        return Answer(**fields, attempts=tries, seconds=time.monotonic() - start)

    def preflight(self) -> Answer:
        """The answer to one short request. UserError says what is wrong."""
        try:
            return self.ask(PLAIN, attempts=2)
        except Down as error:
            fix = "Fix: start a server there, or give another base_url."
            raise Misplaced(f"{error}. {fix}") from error

    def described(self, answer: Answer) -> str:
        """What the user is told after the preflight."""
        counted = "counts no tokens: they are estimated" if answer.estimated else "counts tokens"
        return f"{self._named()} answers in {answer.seconds:.1f} s and {counted}"

    def hide(self, data: bytes) -> bytes:
        """`data` without the key."""
        if self._key is None or len(self._key) < _SHORTEST_SECRET:
            return data
        return data.replace(self._key.encode(), b"(the key)")

    def close(self) -> None:
        self._client.close()

    def _named(self) -> str:
        return f"{self.config.model} at {self.config.address}"

    def _body(self, request: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        body = {"model": config.model, "max_tokens": config.max_tokens, **_plain(request)}
        if config.temperature is not None:
            body.setdefault("temperature", config.temperature)
        if config.api == "anthropic":
            return _anthropic(body)
        if config.address == ADDRESSES["openai"]:  # its newer models know no other name for it
            body["max_completion_tokens"] = body.pop("max_tokens")
        return body

    def _post(self, body: Mapping[str, Any]) -> bytes:
        """The body of the reply. Read here and not by the client: that has no bound in bytes, and its
        time limit is between two bytes."""
        sdk, limit = self._sdk, self.config.timeout_s
        client = self._client
        api = client.messages if self.config.api == "anthropic" else client.chat.completions
        create = api.with_streaming_response.create
        deadline, data = time.monotonic() + limit, bytearray()
        try:
            with create(**body, extra_headers=self._headers) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if time.monotonic() > deadline:
                        raise _Again(f"no whole reply within {limit:g} s")
                    if len(data) > LARGEST_REPLY:
                        reason = f"{self._named()}: a reply of more than {LARGEST_REPLY} bytes"
                        raise Down(reason, doubtful=True)
        except sdk.APITimeoutError as error:
            raise _Again(f"no reply within {limit:g} s") from error
        except sdk.APIConnectionError as error:
            raise _Again(f"no connection: {error.__cause__ or error}") from error
        except sdk.APIStatusError as error:
            self._refuse(error)
        except Exception as error:
            # While a body comes in the client passes on what its HTTP library raises: httpx or httpx2.
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise _Again(f"the reply broke off: {type(error).__name__}: {error}") from error
        return self.hide(bytes(data))

    def _refuse(self, error: Any) -> NoReturn:
        status, said = error.status_code, self._said(error)
        if status == 429 and getattr(error, "code", None) == "insufficient_quota":
            raise Misplaced(f"{self._named()} refuses: {said}. Fix: add credit to that account.")
        if status in _AGAIN or status >= 500:
            asked = _asked_wait(error.response.headers)
            raise _Again(f"HTTP {status}: {said}", asked, doubtful=status != 429)
        if status < 400:
            where = error.response.headers.get("location", "elsewhere")
            raise Misplaced(f"{self.config.address} sends on to {where}. Give that as base_url.")
        if status in (401, 402, 403):
            state = "set" if self._key else "not set"
            raise Misplaced(
                f"{self._named()} refuses: HTTP {status}: {said}. Fix: the environment variable "
                f"{self.config.key_variable} (key_env) is {state}; check it, and its account.",
                doubtful=status == 403,  # some say so of a prompt that their filter does not like
            )
        if status in (404, 405):
            raise Misplaced(
                f"{self._named()}: HTTP {status}: {said}. {self._models()}"
                "Fix: check model and base_url."
            )
        raise Refused(f"{self._named()} refuses the request: HTTP {status}: {said}", said)

    def _said(self, error: Any) -> str:
        body = error.body
        if isinstance(body, dict):
            body = body.get("error") or body  # OpenAI's client has taken that step
            body = body.get("message") or body
        data = self.hide(str(body or "no reason").encode("utf-8", "replace"))
        return _printable(data.decode("utf-8", "replace"))[:300]

    def _models(self) -> str:
        """The names that the endpoint lists, as a sentence; nothing where it lists none."""
        try:
            listed = self._client.models.list(extra_headers=self._headers).data
            names = sorted(str(model.id) for model in listed)
        except Exception:  # only a help beside the error that is being told
            return ""
        return f"It has: {_printable(', '.join(names))[:600]}. " if names else ""

    def _read(self, data: bytes, body: Mapping[str, Any]) -> dict[str, Any]:
        """An Answer's fields, but for attempts and seconds."""
        read = _read_anthropic if self.config.api == "anthropic" else _read_openai
        try:
            text, calls, finish, counts = read(json.loads(data))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            start = _printable(data[:80].decode("utf-8", "replace"))
            raise _Again(f"a reply that is no chat completion: {start!r}") from error
        calls = [_plain(call) for call in calls]
        encoded = None if text is None else text.encode("utf-8", "replace")
        length = len(encoded or b"") + (len(json.dumps(calls)) if calls else 0)
        whole = all(type(count) is int and count >= 0 for count in counts)
        if not whole:
            said = json.dumps([body.get("system"), body["messages"], body.get("tools")])
            counts = [math.ceil(len(said) / 4), math.ceil(length / 4)]
        cut = length > LARGEST_TEXT
        if cut:
            encoded, calls, finish = (encoded or b"")[:LARGEST_TEXT], [], "length"
        message: dict[str, Any] = {
            "role": "assistant",
            # half surrogates, which a byte-level tokeniser can produce, become "?"
            "content": None if encoded is None else encoded.decode("utf-8", "ignore"),
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "message": message,
            "finish": finish,
            "tokens_in": counts[0],
            "tokens_out": counts[1],
            "estimated": not whole,
            "cut": cut,
        }


_Parsed = tuple[str | None, Sequence[Any], str, Sequence[Any]]  # text, tool calls, finish, tokens


def _read_openai(reply: Any) -> _Parsed:
    choice = reply["choices"][0]
    message = choice["message"]
    text = message.get("content")
    if isinstance(text, list):  # of parts, as some servers have it
        text = _joined(text)
    if not isinstance(text, str | None):
        raise TypeError
    calls = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        call_id = str(call.get("id") or f"call_{number}")
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        if not isinstance(arguments, str):  # a few servers give the object itself
            arguments = json.dumps(arguments)
        function = {"name": str(name), "arguments": arguments}
        calls.append({"id": call_id, "type": "function", "function": function})
    usage = reply.get("usage") or {}
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    return text, calls, str(choice.get("finish_reason") or "stop"), counts


def _read_anthropic(reply: Any) -> _Parsed:
    text = _joined(reply["content"])
    finish = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
    reason = str(reply.get("stop_reason"))
    usage = reply.get("usage") or {}
    # What comes from its cache, or goes there, is not among the input tokens. At the full price.
    cached = [usage.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation")]
    counts = [usage.get("input_tokens"), usage.get("output_tokens")]
    if isinstance(counts[0], int):
        counts[0] += sum(cached)
    return text, (), finish.get(reason, reason), counts


def _joined(parts: Iterable[Mapping[str, Any]]) -> str:
    return "".join(part["text"] for part in parts if part.get("type") == "text")


def _anthropic(body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's request as Anthropic's: texts alone, without tools."""
    unknown = body.keys() - {"model", "messages", "max_tokens", "temperature", "top_p", "stop"}
    told, others = [], []
    for message in body["messages"]:
        if not isinstance(message.get("content"), str) or message.get("tool_calls"):
            unknown |= {"a message that is no text"}
        elif message["role"] in ("system", "developer"):
            told.append(message["content"])
        elif message["role"] in ("user", "assistant"):
            others.append({"role": message["role"], "content": message["content"]})
        else:
            unknown |= {f"messages of {message['role']!r}"}
    if unknown:
        raise Refused(f"with Anthropic's API there is no {', '.join(sorted(unknown))} here")
    same = {"model", "max_tokens", "temperature", "top_p"} & body.keys()
    sent = {name: body[name] for name in same}
    if told:
        sent["system"] = "\n\n".join(told)
    if "stop" in body:
        stop = body["stop"]
        sent["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    return sent | {"messages": others}


def _import(api: str) -> Any:
    try:
        return importlib.import_module(api)
    except ModuleNotFoundError as error:
        if error.name != api:
            raise
        raise UserError(
            f'api="{api}" needs the package {api}. Fix: uv sync --extra {_EXTRAS[api]}'
        ) from error


def _client(sdk: Any, config: ModelConfig, key: str | None) -> Any:
    # Not over a proxy to this machine itself; and a redirect would carry the prompts to another host.
    local = urlsplit(config.address).hostname in ("localhost", "127.0.0.1", "::1")
    options: dict[str, Any] = {
        "base_url": config.address,
        "api_key": key or "none",
        "timeout": config.timeout_s,
        "max_retries": 0,
        "http_client": sdk.DefaultHttpxClient(follow_redirects=False, trust_env=not local),
    }
    make = sdk.Anthropic if config.api == "anthropic" else sdk.OpenAI
    return make(**options)


def _secret(config: ModelConfig) -> str | None:
    key = os.environ.get(config.key_variable, "").strip()
    if not (key.isascii() and (not key or key.isprintable())):
        raise UserError(
            f"the environment variable {config.key_variable} holds characters that no key has. Set it "
            "again."
        )
    if not key and config.address in ADDRESSES.values():
        raise UserError(
            f"the environment variable {config.key_variable} (key_env) is not set, and "
            f"{config.address} wants a key. Fix: set it, or give base_url."
        )
    return key or None


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Retry-After in seconds: a number, or a date; 0 where there is none to be read."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        now = datetime.datetime.now(date.tzinfo or datetime.UTC)
        seconds = (date.replace(tzinfo=date.tzinfo or datetime.UTC) - now).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _plain(value: Any) -> Any:
    """`value` as JSON in UTF-8 can hold it: half surrogates become "?"."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return json.loads(text.encode("utf-8", "replace"))
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(f"the request is no JSON: {error}") from error


def _printable(text: str) -> str:
    """On one line, without a terminal's escapes."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
