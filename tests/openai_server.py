"""A real HTTP server on this machine that speaks the OpenAI protocol, plays recorded answers, and
breaks it by name.

    with OpenAIServer(["first answer", Fault("429", retry_after=1), "second answer"]) as server:
        ModelConfig("m", server.url)
        ...
        assert len(server.seen) == 3

An answer is a text, a whole message ({"role": "assistant", "content": …, "tool_calls": …}) or a Fault;
each request takes the next. Past the last there is a 500. A function (number of the request, its body)
-> answer plays what it likes. Tokens are words: those of all texts of a request, those of the answer.

It answers POST …/chat/completions, GET …/models and, for Anthropic's client, POST …/messages.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Faults that are an HTTP status with an error in OpenAI's shape: name -> (status, type, code, message).
STATUSES = {
    "400": (400, "invalid_request_error", "context_length_exceeded", "the prompt is too long"),
    "401": (401, "invalid_request_error", "invalid_api_key", "Incorrect API key: {key}"),
    "403": (403, "invalid_request_error", "forbidden", "not in your country"),
    "404": (404, "invalid_request_error", "model_not_found", "no such model"),
    "429": (429, "requests", "rate_limit_exceeded", "too many requests"),
    "quota": (429, "insufficient_quota", "insufficient_quota", "your quota is spent"),
    "500": (500, "server_error", None, "the server's GPU fell off"),
    "503": (503, "server_error", None, "overloaded"),
}
FAULTS = (
    *STATUSES,
    "redirect",  # 307 to another host
    "hang",  # the request is read, and no byte comes back
    "trickle",  # a byte every 20 ms, for ever
    "no reply",  # the connection is closed before a byte
    "half a body",  # fewer bytes than Content-Length says, then closed
    "half a stream",  # chunked, closed before the last chunk
    "malformed JSON",
    "not a completion",  # JSON of another shape
    "no choices",
    "empty answer",
    "null answer",
    "10 MB",  # of text, and tokens to match
    "endless",  # bytes without an end
    "no usage",  # the text "word word word" without token counts
    "odd usage",  # the same, with token counts that are none
)


@dataclass(frozen=True)
class Fault:
    """name: one of FAULTS. retry_after: the header's value, for those with a status."""

    name: str
    retry_after: float | str | None = None

    def __post_init__(self) -> None:
        assert self.name in FAULTS, self.name


Answer = str | Mapping[str, Any] | Fault


class OpenAIServer:
    """seen: each request as {"path", "headers", "body"}, in order of arrival. url: up to /v1.
    key: what the client must send, if anything. models: those that it has; others are a 404."""

    def __init__(
        self,
        answers: Sequence[Answer] | Callable[[int, dict[str, Any]], Answer],
        *,
        key: str | None = None,
        models: Sequence[str] = ("m",),
    ) -> None:
        self.answers, self.key, self.models = answers, key, tuple(models)
        self.seen: list[dict[str, Any]] = []
        self.lock, self.closing = threading.Lock(), threading.Event()
        handler = type("Handler", (_Handler,), {"outer": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> OpenAIServer:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.closing.set()  # lets go of those that hang
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def next(self, request: dict[str, Any]) -> Answer:
        with self.lock:
            number = len(self.seen)
            self.seen.append(request)
        if callable(self.answers):
            return self.answers(number, request["body"])
        return self.answers[number] if number < len(self.answers) else Fault("500")


def words(texts: Any) -> int:
    """The words of a text, or of all texts in a list of messages or of parts."""
    if isinstance(texts, str):
        return len(texts.split())
    if isinstance(texts, Mapping):
        return words(texts.get("content") or texts.get("text") or "")
    return sum(map(words, texts or ()))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body, sent apart, take 40 ms
    outer: OpenAIServer

    def do_GET(self) -> None:
        if not self.path.endswith("/models"):
            return self.error("404")
        if not self.has_key():
            return self.error("401")
        data = [{"id": name, "object": "model"} for name in self.outer.models]
        self.reply(200, {"object": "list", "data": data})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.outer.next({"path": self.path, "headers": headers, "body": body})
        with contextlib.suppress(OSError):  # it may have hung up
            if not self.has_key():
                self.error("401")
            elif body.get("model") not in self.outer.models:
                self.error("404")
            elif isinstance(answer, Fault):
                self.fault(answer, body)
            else:
                self.answer(answer, body)

    def has_key(self) -> bool:
        sent = (self.headers.get("Authorization"), self.headers.get("x-api-key"))
        return (
            self.outer.key is None or f"Bearer {self.outer.key}" in sent or self.outer.key in sent
        )

    def answer(self, answer: str | Mapping[str, Any], body: dict[str, Any], **changes: Any) -> None:
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        tokens_in = words(body["messages"]) + words(body.get("system") or "")
        tokens_out = words(message)
        if self.path.endswith("/messages"):  # Anthropic's
            return self.reply(
                200,
                {
                    "id": "msg_1",
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "text", "text": message["content"]}],
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": tokens_in, "output_tokens": tokens_out},
                }
                | changes,
            )
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        }
        completion = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
        self.reply(200, completion | changes)

    def fault(self, fault: Fault, body: dict[str, Any]) -> None:
        name, closing = fault.name, self.outer.closing
        if name in STATUSES:
            self.error(name, fault.retry_after)
        elif name == "redirect":
            self.reply(307, {}, Location="http://elsewhere.example/v1/chat/completions")
        elif name == "hang":
            closing.wait(60)
            self.close_connection = True
        elif name == "no reply":
            self.close_connection = True
        elif name == "trickle":
            self.head(1 << 20)
            while not closing.wait(0.02):
                self.wfile.write(b" ")
        elif name == "half a body":
            self.head(1000)
            self.wfile.write(b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess')
            self.close_connection = True
        elif name == "half a stream":
            self.head(None)
            self.wfile.write(b'25\r\n{"id": "chatcmpl-1", "choices": [{"in\r\n')
            self.close_connection = True
        elif name == "endless":
            self.head(None)
            while not closing.is_set():
                self.wfile.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
        elif name == "malformed JSON":
            self.reply(200, b'{"id": "chatcmpl-1", "choices": [{"index"')
        elif name == "not a completion":
            self.reply(200, ["hello"])
        elif name == "no choices":
            self.answer("", body, choices=[])
        elif name == "empty answer":
            self.answer("", body)
        elif name == "null answer":
            self.answer({"role": "assistant", "content": None}, body)
        elif name == "10 MB":
            self.answer("word word " * 1_000_000, body)
        elif name == "no usage":
            self.answer("word word word", body, usage=None)
        elif name == "odd usage":
            odd = {"prompt_tokens": -5, "completion_tokens": "many"}
            self.answer("word word word", body, usage=odd)

    def error(self, name: str, retry_after: float | str | None = None) -> None:
        status, kind, code, message = STATUSES[name]
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        message = message.format(key=sent or self.headers.get("x-api-key", ""))
        headers = {} if retry_after is None else {"Retry_After": str(retry_after)}
        self.reply(status, {"error": {"message": message, "type": kind, "code": code}}, **headers)

    def reply(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.head(len(data), status, **headers)
        self.wfile.write(data)

    def head(self, length: int | None, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass
