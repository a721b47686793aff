"""The model: the OpenAI chat protocol over the unix socket that the sandbox gives us.

Whoever listens there holds the key, repeats calls that failed, and counts the cost. So a failure
here is final.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass

SOCKET = "/run/model.sock"
MAX_ANSWER_BYTES = 4 << 20
MAX_CALLS = 16  # tool calls of one answer; those beyond are dropped


class ModelError(Exception):
    """The model gave no usable answer."""


class ContextTooLong(ModelError):
    """The messages are longer than the model can read."""


@dataclass
class Call:
    """A tool call. id: None where it was written as text. error: why it cannot be run, or ""."""

    id: str | None
    name: str
    arguments: dict
    error: str = ""


@dataclass
class Answer:
    """message: as it goes back into the history."""

    text: str
    calls: list[Call]
    message: dict


def chat(messages: list[dict], tools: list[dict], seconds: float, path: str = SOCKET) -> Answer:
    """One answer, within so many seconds. tools: as from tool_info(). A server that refuses tools is
    asked again without them: the prompt says how to write a call as text."""
    deadline = time.monotonic() + seconds
    functions = [{"type": "function", "function": tool} for tool in tools]
    status, body = _post({"messages": messages, "tools": functions}, deadline, path)
    if status >= 400 and re.search(r"\btools?\b|tool_choice|tool choice", body, re.I):
        status, body = _post({"messages": messages}, deadline, path)
    if status >= 400:
        if re.search(r"context|too long|maximum.{0,20}length", body, re.I):
            raise ContextTooLong(body[:500])
        raise ModelError(f"HTTP status {status}: {body[:500]}")
    try:
        message = json.loads(body)["choices"][0]["message"]
        return parse(message)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"not an answer of the chat protocol ({error}): {body[:500]}") from error


def parse(message: dict) -> Answer:
    """The answer in a message of the chat protocol. Tool calls are taken from `tool_calls`, or else
    from the text."""
    text = (message.get("content") or "").encode("utf-8", "replace").decode("utf-8")
    calls = []
    for number, item in enumerate((message.get("tool_calls") or [])[:MAX_CALLS]):
        arguments, error = _arguments(item["function"].get("arguments"))
        name = item["function"]["name"]
        calls.append(Call(item.get("id") or f"call_{number}", name, arguments, error))
    if calls:
        # Arguments that are not JSON would make some servers refuse the history.
        history = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in calls
        ]
        return Answer(text, calls, {"role": "assistant", "content": text, "tool_calls": history})
    return Answer(text, calls_in_text(text), {"role": "assistant", "content": text})


def calls_in_text(text: str) -> list[Call]:
    """Calls written as a fenced block, ```tool {"name": …, "arguments": {…}} ```, or between
    <tool_call> and </tool_call>. A ```json block that is no call is none; the others are told what is
    wrong."""
    calls = []
    kind, block = "", ""
    for line in text.splitlines():
        mark = line.strip()
        if not kind and mark in ("```tool", "```tool_call", "```json"):
            kind, block = mark, ""
        elif kind and mark == "```":
            call = _call(block)
            if kind != "```json" or not call.error:
                calls.append(call)
            kind = ""
        elif kind:
            block += line + "\n"
    if kind in ("```tool", "```tool_call"):  # the answer was cut off
        calls.append(_call(block))
    for piece in text.split("<tool_call>")[1:]:
        calls.append(_call(piece.partition("</tool_call>")[0]))
    return calls[:MAX_CALLS]


def _call(block: str) -> Call:
    try:
        value = json.loads(block)
        name, arguments = value["name"], value["arguments"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        problem = f'Error: the call is not {{"name": "…", "arguments": {{…}}}}: {error!r}'
        return Call(None, "unknown", {}, problem)
    return Call(None, str(name), *_arguments(arguments))


def output_message(call: Call, output: str) -> dict:
    """A tool's output as the message that follows the call."""
    if call.id is None:
        return {"role": "user", "content": f"Output of {call.name}:\n{output}"}
    return {"role": "tool", "tool_call_id": call.id, "content": output}


def _arguments(value: object) -> tuple[dict, str]:
    """(arguments, why they cannot be used)."""
    try:
        value = json.loads(value or "{}") if value is None or isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        return {}, f"Error: the arguments are not JSON: {error}"
    if not isinstance(value, dict):
        return {}, "Error: the arguments are not a JSON object."
    return value, ""


def _post(request: dict, deadline: float, path: str) -> tuple[int, str]:
    """(status, body)."""
    body = json.dumps({"model": "default", **request})
    connection = _UnixConnection(path, max(0.1, deadline - time.monotonic()))
    data = bytearray()
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        response = connection.getresponse()
        while chunk := response.read1(1 << 16):
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise ModelError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                raise ModelError("the answer took too long")
    except (OSError, http.client.HTTPException) as error:
        raise ModelError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    return response.status, data.decode("utf-8", "replace")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
