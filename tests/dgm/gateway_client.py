"""HTTP over a gateway's socket, as a job in a sandbox would speak it."""

import contextlib
import http.client
import json
import socket
from typing import Any

SAID = {"messages": [{"role": "user", "content": "one two three"}]}


class Client(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(path: str, body: Any = SAID, method: str = "POST", url: str = "/v1/chat/completions"):
    """(status, JSON). body: bytes go as they are."""
    with contextlib.closing(Client(path)) as client:
        client.request(method, url, body if isinstance(body, bytes) else json.dumps(body))
        response = client.getresponse()
        return response.status, json.loads(response.read())


def text_of(reply: Any) -> str:
    return reply["choices"][0]["message"]["content"]
