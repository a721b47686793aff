"""Buckets (gs://BUCKET/…): what they need that a disk does not.

Files go through etils.epath to gcsfs, the arrays of a checkpoint through TensorStore. Both find
Google's application default credentials: $GOOGLE_APPLICATION_CREDENTIALS, those of `gcloud auth
application-default login`, or the machine's own service account. With STORAGE_EMULATOR_HOST both talk
to an emulator.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from etils import epath

from selfevolve_jax.errors import UserError

CONNECT_S, ANSWER_S = 5.0, 20.0
_CREDENTIALS = (
    "Fix: gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to the file of "
    "a service account."
)


def is_remote(path: str | os.PathLike[str]) -> bool:
    return "://" in os.fspath(path)


def check(path: str | os.PathLike[str]) -> None:
    """Returns for a local path, and for one in a bucket that answers and may be listed.

    UserError, in a few seconds, for another scheme, a bucket that does not exist, no network, and
    missing or refused credentials. Left to itself, gcsfs asks a metadata server that is not there for
    15 s, and then tries each request six times in 34 s."""
    text = os.fspath(path)
    if not is_remote(text):
        return
    scheme, _, rest = text.partition("://")
    bucket = rest.partition("/")[0]
    if scheme != "gs" or not bucket:
        raise UserError(f"{text}: paths are local or gs://BUCKET/FOLDER. Fix: name one of these.")
    _check_bucket(bucket)
    # It tells each error with a traceback, besides raising it.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


@functools.cache  # once a process; a refusal is an exception, and is not kept
def _check_bucket(bucket: str) -> None:
    import requests
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.auth.transport.requests import AuthorizedSession

    host = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    host = host if "://" in host else f"http://{host}"
    if "STORAGE_EMULATOR_HOST" in os.environ:  # or the arrays would go to the real one
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", host)
        # gcsfs would ask for the bucket's kind by gRPC, which emulators do not speak
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

    def listed(session: requests.Session) -> requests.Response:
        url = f"{host}/storage/v1/b/{bucket}/o?maxResults=1&fields=kind"
        return session.get(url, timeout=(CONNECT_S, ANSWER_S))

    try:
        with requests.Session() as anonymous:
            answer = listed(anonymous)
        if answer.status_code in (401, 403):
            with AuthorizedSession(_credentials(bucket)) as session:
                answer = listed(session)
    except (requests.RequestException, TransportError) as error:
        raise UserError(
            f"gs://{bucket}: {host} cannot be reached ({_reason(error)}). "
            "Fix: the network, or use a local folder."
        ) from error
    except GoogleAuthError as error:  # expired or withdrawn
        raise UserError(
            f"gs://{bucket}: the credentials are refused ({_reason(error)}). {_CREDENTIALS}"
        ) from error
    if answer.status_code == 404:
        raise UserError(f"gs://{bucket}: there is no such bucket. Fix: its name, or make it first.")
    if answer.status_code != 200:
        raise UserError(
            f"gs://{bucket} cannot be listed: {answer.status_code} {answer.reason}: "
            f"{_message(answer)}. Fix: give these credentials the role Storage Object User there."
        )


def _credentials(bucket: str) -> Any:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    try:
        scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
        return google.auth.default(scopes=scopes)[0]
    except DefaultCredentialsError as error:
        raise UserError(
            f"gs://{bucket} needs credentials and none are found ({_reason(error)}). {_CREDENTIALS}"
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line: the outer ones repeat the address."""
    inner: BaseException = error
    while (below := getattr(inner, "reason", None) or next(iter(inner.args), None)) is not None:
        if not isinstance(below, BaseException):
            break
        inner = below
    return str(inner).splitlines()[0][:200] if str(inner) else type(inner).__name__


def _message(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["message"]).splitlines()[0][:200]
    except (ValueError, LookupError, TypeError):  # a proxy's page, say
        return "no reason given"


def is_refusal(error: BaseException) -> bool:
    """Whether `error` is a bucket's, the network's or the credentials': their clients have exceptions
    of their own, not all of them OSError."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in ("gcsfs", "google", "aiohttp", "requests")


class Appended:
    """An object in a bucket that grows. A bucket cannot append, and to write the whole of a log again
    at each flush of a long run is gigabytes; so the new end goes up as an object of its own, and the
    bucket joins the two, which is whole or not at all.

    path: absent, or an object that holds `before`; a file object, as far as tensorboardX needs one."""

    def __init__(self, path: str | os.PathLike[str], before: bytes = b""):
        self._path = epath.Path(path)
        self._data, self._up = bytearray(before), len(before)

    def write(self, data: bytes) -> None:
        self._data += data

    def flush(self) -> None:
        """Returns once all that was written is up."""
        if self._up == len(self._data):
            return
        # A request that was answered, but whose answer was lost, is sent again and joins twice: the
        # size tells, and then the whole goes up.
        if not self._up or self._join() != len(self._data):
            self._path.write_bytes(bytes(self._data))
        self._up = len(self._data)

    def _join(self) -> int:
        """The object's size once the new end is joined to it."""
        end = self._path.with_name(f".{self._path.name}.end")
        end.write_bytes(bytes(self._data[self._up :]))
        bucket, _, key = os.fspath(self._path).removeprefix("gs://").partition("/")
        parts = [key, os.fspath(end).removeprefix(f"gs://{bucket}/")]
        request = {
            "sourceObjects": [{"name": name} for name in parts],
            "destination": {"contentType": "application/octet-stream"},
        }
        answer = _gcsfs().call(
            "POST", "b/{}/o/{}/compose", bucket, key, json=request, json_out=True
        )
        end.unlink(missing_ok=True)
        return int(answer["size"])

    def close(self) -> None:
        self.flush()


@contextmanager
def as_local(folder: epath.Path, mode: Literal["read", "write"]) -> Iterator[str]:
    """`folder` as one that libraries without gs:// can read, or write into: itself where it is local,
    else a temporary copy, which goes up, file by file, when the block ends without an exception."""
    if not is_remote(folder):
        yield os.fspath(folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary)
        if mode == "read":
            for name in _files(folder):
                (local / name).parent.mkdir(parents=True, exist_ok=True)
                (local / name).write_bytes((folder / name).read_bytes())
        yield temporary
        if mode == "write":
            for file in sorted(p for p in local.rglob("*") if p.is_file()):
                (folder / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())


def _files(folder: epath.Path) -> list[str]:
    """The files under `folder`, by their names relative to it."""
    root = os.fspath(folder).removeprefix("gs://").rstrip("/")
    return [name.removeprefix(f"{root}/") for name in _gcsfs().find(root)]


def _gcsfs() -> Any:
    from etils.epath.backend import fsspec_backend

    return fsspec_backend.fs("gs://")  # the one that epath uses


def _never_cache_listings() -> None:
    """gcsfs keeps what it once listed for good, and TensorStore and other processes write past it:
    a new file would be absent, and a longer one be read up to its old size."""
    os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
    config = sys.modules.get("fsspec.config")
    if config is not None:  # it has read the environment already
        config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


_never_cache_listings()
