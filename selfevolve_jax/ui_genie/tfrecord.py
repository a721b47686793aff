"""TFRecord shards and tf.Example records without TensorFlow, read as a stream.

A TFRecord file is records one after another, each of them (tensorflow.org, "TFRecord and
tf.train.Example", section on the format):

    uint64 length · uint32 masked CRC32C of those 8 bytes · data · uint32 masked CRC32C of the data

all little-endian, where masked(c) = rotate_right(c, 15) + 0xa282ead8 modulo 2^32. A shard may be
gzipped as a whole. The data is a tf.Example here, a protocol buffer, whose wire format
(protobuf.dev, "Encoding") needs a page of code: `wire_fields` reads it, and android_control.py reads
accessibility trees with it too.

Memory: one record and the stream's buffers, whatever the size of the shard.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import google_crc32c
from etils import epath

from selfevolve_jax.errors import UserError
from selfevolve_jax.run_dir import is_remote

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which are no more
Feature = list[bytes] | list[float] | list[int]

_CHUNK = 1 << 20  # bytes: a damaged length must not make us ask for all of it at once
_FIX = "Fix: download the shard again."


class WireError(ValueError):
    """Bytes that are no protocol buffer, or not one of the expected message."""


def masked_crc(data: bytes) -> int:
    """The masked CRC32C (Castagnoli) of TFRecord, 32 bits."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The data of each record of a shard, in order, gzipped or plain (told by its first bytes).

    path: local or remote (gs://…). Both checksums of a record are held against it before it is given
    out. UserError naming the file, the record (the first is 0) and what is wrong: missing, cut short,
    damaged.
    """
    with contextlib.ExitStack() as stack:
        try:
            raw = cast(BinaryIO, stack.enter_context(epath.Path(path).open("rb")))
            head = raw.read(12)
            raw.seek(0)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist. Fix: check the path.") from None
        except Exception as error:
            raise _unreadable(path, "", error) from error
        # The length's checksum tells a plain shard for sure: its first bytes could be those of gzip.
        if not head or _length(head) is not None:
            stream: BinaryIO = raw
        elif head.startswith(b"\x1f\x8b"):
            stream = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=raw)))
        else:
            raise _damaged(path, 0, "it starts neither as gzip nor as a TFRecord's length")
        number = 0
        while (data := _record(stream, path, number)) is not None:
            yield data
            number += 1


def example(data: bytes) -> dict[str, Feature]:
    """The features of a serialised tf.Example by name. WireError if it is none.

    Numbers may be packed or not. A feature without a kind is an empty list.
    """
    # Field numbers: tensorflow/core/example/example.proto and feature.proto.
    features: dict[str, Feature] = {}
    for message in _messages(data, 1):  # Example.features
        for entry in _messages(message, 1):  # Features.feature, a map of (key = 1, value = 2)
            key, value = b"", b""
            for number, wire, content in wire_fields(entry):
                if number in (1, 2) and wire != BYTES:
                    raise WireError(f"entry of a feature map: field {number} has wire type {wire}")
                if number == 1:
                    key = content
                elif number == 2:
                    value = content
            features[text_of(key)] = _feature(value)
    return features


def wire_fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of each field of a message in order. Value: an unsigned
    integer for VARINT, the bytes for the others. WireError where the bytes end early or are wrong."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError(f"field number 0 before byte {at}")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise WireError(f"field {number} has the unknown wire type {wire} before byte {at}")
        if at + size > end:
            raise WireError(f"field {number} wants {size} bytes at byte {at} of {end}")
        yield number, wire, data[at : at + size]
        at += size


def signed(value: int) -> int:
    """An int32 or int64 from its varint: negative numbers are written as two's complement, 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def text_of(data: bytes) -> str:
    """A string field. WireError if it is not UTF-8, which protocol buffers demand of strings."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"a text is not UTF-8 ({error.reason})") from None


def _record(stream: BinaryIO, path: str | os.PathLike[str], number: int) -> bytes | None:
    """The next record's data; None at the end of the shard."""
    head = _read(stream, 12, path, number)
    if not head:
        return None
    if len(head) < 12:
        raise _damaged(path, number, f"it ends after {len(head)} of a record's first 12 bytes")
    length = _length(head)
    if length is None:
        raise _damaged(path, number, "the checksum of its length does not match")
    data = _read(stream, length, path, number)
    check = _read(stream, 4, path, number)
    if len(data) < length or len(check) < 4:
        got = len(data) + len(check)
        raise _damaged(path, number, f"it is cut short: {got} of {length + 4} bytes are there")
    if struct.unpack("<I", check)[0] != masked_crc(data):
        raise _damaged(path, number, f"the checksum of its {length} bytes does not match")
    return data


def _read(stream: BinaryIO, size: int, path: str | os.PathLike[str], number: int) -> bytes:
    """`size` bytes, or as many as there are before the end."""
    parts, left = [], size
    try:
        while left > 0 and (part := stream.read(min(left, _CHUNK))):
            parts.append(part)
            left -= len(part)
    except EOFError:
        raise _damaged(path, number, "the gzip stream is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:  # before OSError, which BadGzipFile is
        raise _damaged(path, number, f"the gzip stream is damaged ({error})") from error
    except Exception as error:
        raise _unreadable(path, f", record {number}", error) from error
    return b"".join(parts)


def _length(head: bytes) -> int | None:
    """The length that a record's first 12 bytes state; None if their checksum is not right."""
    if len(head) < 12:
        return None
    length, check = struct.unpack("<QI", head)
    return length if check == masked_crc(head[:8]) else None


def _unreadable(path: str | os.PathLike[str], where: str, error: Exception) -> Exception:
    # Object stores have exceptions of their own (gcsfs: HttpError, google.auth's), all for our user.
    if isinstance(error, OSError) or is_remote(path):
        return UserError(
            f"{path}{where} cannot be read: {error}. Fix: check the path, permissions and network."
        )
    return error


def _damaged(path: str | os.PathLike[str], number: int, what: str) -> UserError:
    return UserError(f"{path}, record {number}: {what}. {_FIX}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value modulo 2^64, place after it): seven bits a byte, the low ones first."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise WireError(f"a number is cut off at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise WireError(f"a number of more than 10 bytes ends at byte {at}")


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    """The sub-messages of field `wanted`."""
    for number, wire, content in wire_fields(data):
        if number == wanted:
            if wire != BYTES:
                raise WireError(f"field {number} has wire type {wire}, and is no message")
            yield content


def _feature(data: bytes) -> Feature:
    """A Feature: one of BytesList = 1, FloatList = 2, Int64List = 3, each with `value` = 1."""
    found: Feature = []
    for kind, wire, content in wire_fields(data):
        if kind not in (1, 2, 3):
            continue
        if wire != BYTES:
            raise WireError(f"a feature's list has wire type {wire}")
        values: list = []
        for number, how, value in wire_fields(content):
            if number == 1:
                values.extend(_values(kind, how, value))
        found = values  # of a oneof the last one counts
    return found


def _values(kind: int, how: int, value: int | bytes) -> list:
    """The elements of a list that one field holds: one, or many if they are packed."""
    if isinstance(value, bytes):
        if kind == 1 and how == BYTES:
            return [value]
        if kind == 2 and how in (FIXED32, BYTES) and len(value) % 4 == 0:
            return [number for (number,) in struct.iter_unpack("<f", value)]
        if kind == 3 and how == BYTES:
            numbers, at = [], 0
            while at < len(value):
                number, at = _varint(value, at)
                numbers.append(signed(number))
            return numbers
    elif kind == 3:
        return [signed(value)]
    name = ("bytes", "float", "int64")[kind - 1]
    raise WireError(f"a list of {name} holds a value of wire type {how}")
