"""A unix socket for one job in a sandbox, behind which a model answers.

It is all that a job with its network cut can reach. It speaks HTTP/1.1 and OpenAI's chat completions
(protocol.py says what of them) and nothing else; it wants no key and takes none; the model's name, the
key, the prices and the budget are on this side.

    POST /v1/chat/completions
        200, or an error in OpenAI's shape:
        400  the request is not taken here, or the model's server refuses it and says why
        429  code "budget_spent": there will be no further answer
        503  the model's endpoint failed: this job will be done over, whatever it makes of it
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

from selfevolve_jax.dgm.contract import BudgetSpent, Unavailable, Usage
from selfevolve_jax.dgm.llm import protocol
from selfevolve_jax.dgm.llm.config import BudgetConfig
from selfevolve_jax.llm.endpoint import Answer, Down, Refused, Stop

PATH = "/v1/chat/completions"
CONNECTIONS = 16  # of one job at a time; more are closed as they come
_LONGEST_PATH = 107  # bytes, of a unix socket's
_DRAINED = 1024  # times at most 64 KiB

# (request, stop, what it costs goes here) -> the answer. Raises Down, Refused, BudgetSpent, UserError.
Ask = Callable[[Mapping[str, Any], Stop, Callable[[Usage], None]], Answer]


class Session:
    """contract.Session: one job's socket, open from the start.

    ask: puts a request to the model. most_tokens: of one answer. budget: its session_ limits hold here.
    model: the name that the job sees. folder: of the socket; short, and closed to other users."""

    def __init__(
        self, ask: Ask, most_tokens: int, budget: BudgetConfig, model: str, folder: str
    ) -> None:
        self.most_tokens, self.model = most_tokens, model
        self._ask, self._budget = ask, budget
        self._usage, self._asked, self._under_way = Usage(), 0, 0
        self._failed: BaseException | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._connections: set[socket.socket] = set()
        self.socket = os.path.join(folder, f"{secrets.token_hex(4)}.sock")
        if len(os.fsencode(self.socket)) > _LONGEST_PATH:
            raise ValueError(f"too long for a unix socket's path: {self.socket}")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(self.socket)
            os.chmod(
                self.socket, 0o666
            )  # the job has a user of its own; the folder keeps others out
            self._listener.listen(CONNECTIONS)
        except BaseException:
            self._listener.close()
            raise
        threading.Thread(target=self._accept, name="gateway", daemon=True).start()

    def usage(self) -> Usage:
        """What the job's calls cost. Waits for those under way, so ask once the job has ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)
            return self._usage

    def close(self, wait: bool = True) -> None:
        """Hangs up. wait: until calls under way have ended, which are not tried again; they cost money
        and are logged either way."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes _accept
        self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            os.unlink(self.socket)
        if wait:
            self.usage()

    def raise_if_failed(self) -> None:
        """What befell a call of the job and is not the job's fault: Unavailable; BudgetSpent, if the
        run's budget denied it a call; UserError, if nothing would ever be answered."""
        if isinstance(self._failed, Down):
            raise Unavailable(str(self._failed)) from self._failed
        if self._failed is not None:
            raise self._failed

    def answer(self, body: bytes, stop: Stop) -> tuple[int, Any]:
        """(status, JSON or the bytes of a stream). Never raises."""
        try:
            request, stream = protocol.read(body, self.most_tokens)
        except protocol.Bad as error:
            return 400, protocol.error(str(error), "invalid_request_error", "not_taken")
        with self._changed:
            if self._failed is not None or self._closed:
                return self._lost()
            if spent := self._spent():
                return 429, protocol.error(spent, "budget_spent", "budget_spent")
            self._asked += 1
            self._under_way += 1
        try:
            whole = protocol.completion(self._ask(request, stop, self._count), self.model)
            return 200, protocol.as_stream(whole) if stream else whole
        except Refused as error:
            return 400, protocol.error(error.said, "invalid_request_error", "refused")
        except BaseException as error:
            # The endpoint, the budget, the disk or a bug: for the host to hear of, not for the job.
            with self._changed:
                self._failed = self._failed or error
            return self._lost()
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def _lost(self) -> tuple[int, Any]:
        if isinstance(self._failed, BudgetSpent):
            text = "the run's budget is spent"
            return 429, protocol.error(text, "budget_spent", "budget_spent")
        return 503, protocol.error("no model can be reached", "server_error", "unavailable")

    def _count(self, usage: Usage) -> None:
        with self._changed:
            self._usage += usage

    def _spent(self) -> str:
        budget, usage = self._budget, self._usage
        tokens = usage.tokens_in + usage.tokens_out
        if self._asked >= budget.session_calls:
            return f"this job's {budget.session_calls} calls are spent"
        if budget.session_tokens is not None and tokens >= budget.session_tokens:
            return f"this job's {budget.session_tokens} tokens are spent"
        if budget.session_dollars is not None and usage.dollars >= budget.session_dollars:
            return f"this job's {budget.session_dollars:g} dollars are spent"
        return ""

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                time.sleep(0.1)  # no file descriptors left, or the client has gone already
                continue
            with self._changed:
                room = len(self._connections) < CONNECTIONS and not self._closed
                if room:
                    self._connections.add(connection)
            if room:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            else:
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):  # it has hung up
                _Handler(connection, self)
                # What was refused unread is read now: else the client, still sending, would find its
                # connection broken in place of the reply.
                connection.shutdown(socket.SHUT_WR)
                for _ in range(_DRAINED):
                    if not connection.recv(1 << 16):
                        break
        finally:
            with self._changed:
                self._connections.discard(connection)
            connection.close()


class _HungUp:
    """A Stop that is set once nobody waits for the answer: the client has closed its connection, or the
    session has."""

    def __init__(self, connection: socket.socket) -> None:
        self._poll = select.poll()
        self._poll.register(connection, 0)  # nothing but the other end's closing

    def is_set(self) -> bool:
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> bool:
        return bool(self._poll.poll(None if timeout is None else timeout * 1000))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "gateway", ""

    def __init__(self, connection: socket.socket, session: Session) -> None:
        self.session = session
        super().__init__(connection, ("", 0), None)  # pyright: ignore[reportArgumentType]

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path.partition("?")[0] != PATH:
            return self._refuse(404, f"there is nothing but POST {PATH} here")
        if not (length.isascii() and length.isdigit()):
            return self._refuse(411, "the request must say its Content-Length")
        if len(length) > 12 or int(length) > protocol.LARGEST_REQUEST:
            return self._refuse(413, f"a request is at most {protocol.LARGEST_REQUEST} bytes")
        body = self.rfile.read(int(length))
        if len(body) == int(length):
            self._reply(*self.session.answer(body, _HungUp(self.connection)))

    def do_GET(self) -> None:
        self._refuse(404, f"there is nothing but POST {PATH} here")

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server finds wrong with a request: in OpenAI's shape, too."""
        self._refuse(int(code), message or "that is no HTTP request")

    def _refuse(self, status: int, message: str) -> None:
        self.close_connection = True  # its body has not been read
        self._reply(status, protocol.error(message, "invalid_request_error"))

    def _reply(self, status: int, content: Any) -> None:
        stream = isinstance(content, bytes)
        data = content if stream else json.dumps(content).encode()
        kind = "text/event-stream" if stream else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
