"""TFRecord shards against bytes by hand, an encoder of our own, and damage."""

import contextlib
import gzip
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevolve_jax.errors import UserError
from selfevolve_jax.ui_genie import tfrecord

# The encoder. Written from the format's definition, with a checksum that works bit by bit.


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes, checksum=masked) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + checksum(data)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def feature(values: list, packed: bool = True) -> bytes:
    """A Feature of bytes, floats or ints, by the kind of its first value."""
    if not values:
        return b""
    if isinstance(values[0], bytes):
        return block(1, b"".join(block(1, value) for value in values))
    if isinstance(values[0], float):
        each = [struct.pack("<f", value) for value in values]
        return block(2, block(1, b"".join(each)) if packed else b"".join(b"\x0d" + e for e in each))
    each = [varint(value) for value in values]
    return block(3, block(1, b"".join(each)) if packed else b"".join(b"\x08" + e for e in each))


def encoded(features: dict[str, list], packed: bool = True) -> bytes:
    entries = (
        block(1, block(1, name.encode()) + block(2, feature(values, packed)))
        for name, values in features.items()
    )
    return block(1, b"".join(entries))


# One record by hand: the feature "a" is the int64 list [3].
DATA = bytes.fromhex(
    "0a0c"  # Example.features, 12 bytes
    "0a0a"  # Features.feature, one entry of 10 bytes
    "0a0161"  # key "a"
    "1205"  # value, a Feature of 5 bytes
    "1a03"  # int64_list, 3 bytes
    "0a0103"  # value, packed, 1 byte: 3
)
RECORD = bytes.fromhex("0e00000000000000c5e5693f") + DATA + bytes.fromhex("ef299dee")


def test_checksum_of_the_standard():
    # The check value that every table of CRCs gives for CRC-32C.
    assert crc32c(b"123456789") == 0xE3069283
    assert tfrecord.masked_crc(b"123456789") == int.from_bytes(masked(b"123456789"), "little")


def test_a_record_by_hand(tmp_path):
    assert encoded({"a": [3]}) == DATA and record(DATA) == RECORD
    (tmp_path / "shard").write_bytes(RECORD)
    [data] = tfrecord.records(tmp_path / "shard")
    assert tfrecord.example(data) == {"a": [3]}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_records_in_order_plain_and_gzipped(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(tfrecord, "_CHUNK", 1000)
    datas = [b"", b"x", bytes(range(256)) * 9, b"last"]  # the third is over two chunks
    (tmp_path / "shard").write_bytes(pack(b"".join(map(record, datas))))
    assert list(tfrecord.records(tmp_path / "shard")) == datas


def test_a_plain_shard_whose_length_looks_like_gzip(tmp_path):
    data = bytes(0x8B1F)
    shard = record(data)
    assert shard.startswith(b"\x1f\x8b")
    (tmp_path / "shard").write_bytes(shard)
    assert list(tfrecord.records(tmp_path / "shard")) == [data]


def test_gzip_of_several_members(tmp_path):
    (tmp_path / "shard").write_bytes(gzip.compress(record(b"a")) + gzip.compress(record(b"b")))
    assert list(tfrecord.records(tmp_path / "shard")) == [b"a", b"b"]


def test_an_empty_shard_has_no_records(tmp_path):
    (tmp_path / "shard").write_bytes(b"")
    assert list(tfrecord.records(tmp_path / "shard")) == []


numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=32, allow_nan=False)
features = st.dictionaries(
    st.text(max_size=5).filter(lambda text: text.isprintable()),
    st.one_of(
        st.lists(st.binary(max_size=9), max_size=4),
        st.lists(floats, max_size=4),
        st.lists(numbers, max_size=4),
    ),
    max_size=4,
)


@given(features, st.booleans())
@settings(max_examples=80)
def test_examples_come_back(values, packed):
    assert tfrecord.example(encoded(values, packed)) == values


@given(st.binary(max_size=60))
@settings(max_examples=150)
def test_noise_is_an_example_or_a_wire_error(data):
    with contextlib.suppress(tfrecord.WireError):
        assert isinstance(tfrecord.example(data), dict)


def test_fields_that_we_do_not_know_are_passed_over():
    entry = block(1, b"a") + block(2, feature([7])) + number(9, 5) + b"\x79" + bytes(8)
    assert tfrecord.example(number(4, 300) + block(1, block(1, entry))) == {"a": [7]}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x0a", "cut off"),
        (b"\x0a\x05ab", "wants 5 bytes"),
        (b"\x80" * 11, "more than 10 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x00", "field number 0"),
        (b"\x08\x01", "no message"),  # features as a number
        (block(1, block(1, block(1, b"\xff") + block(2, b""))), "not UTF-8"),
        (block(1, block(1, block(1, b"a") + block(2, block(2, block(1, b"abc"))))), "float"),
        (block(1, block(1, block(1, b"a") + block(2, block(1, number(1, 2))))), "bytes"),
        (block(1, block(1, block(1, b"a") + number(2, 1))), "wire type 0"),
        (block(1, block(1, block(1, b"a") + block(2, number(3, 1)))), "list has wire type 0"),
    ],
)
def test_what_is_no_example_says_so(data, says):
    with pytest.raises(tfrecord.WireError, match=says):
        tfrecord.example(data)


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        list(tfrecord.records(path))
    message = str(caught.value)
    assert str(path) in message
    return message


def flipped(shard: bytes, at: int) -> bytes:
    return shard[:at] + bytes([shard[at] ^ 1]) + shard[at + 1 :]


def test_damage_names_file_record_and_reason(tmp_path):
    path, good = tmp_path / "shard", record(b"first") + record(b"second")
    second = len(record(b"first"))
    for shard, where, says in [
        (flipped(good, second + 12), "record 1", "checksum of its 6 bytes"),  # data
        (flipped(good, len(good) - 1), "record 1", "checksum of its 6 bytes"),  # its checksum
        (flipped(good, second), "record 1", "checksum of its length"),
        (good[:-1], "record 1", "cut short: 9 of 10 bytes"),
        (good[: second + 5], "record 1", "ends after 5"),
        (b"<html>404</html>", "record 0", "neither as gzip"),
        (good[:5], "record 0", "neither as gzip"),
        (flipped(good, 0), "record 0", "neither as gzip"),
        (gzip.compress(flipped(good, second + 12)), "record 1", "checksum of its 6 bytes"),
    ]:
        path.write_bytes(shard)
        message = refusal(path)
        assert where in message and says in message, message


@pytest.mark.parametrize("cut", [1, 4, 8, 20, 40])
def test_a_gzipped_shard_cut_anywhere(tmp_path, cut):
    # Of random bytes, so that gzip keeps about as many bytes as there are.
    whole = gzip.compress(record(struct.pack("<16Q", *(7**n % 2**64 for n in range(16)))))
    (tmp_path / "shard").write_bytes(whole[:-cut])
    assert "cut short" in refusal(tmp_path / "shard")


def test_a_gzip_stream_that_is_damaged(tmp_path):
    whole = bytearray(gzip.compress(record(bytes(10_000))))
    whole[12:16] = b"\xff\xff\xff\xff"
    (tmp_path / "shard").write_bytes(bytes(whole))
    assert "gzip stream is damaged" in refusal(tmp_path / "shard")


def test_a_length_beyond_the_file_asks_for_no_memory(tmp_path):
    length = struct.pack("<Q", 1 << 60)
    (tmp_path / "shard").write_bytes(length + masked(length) + b"few")
    assert "cut short: 3 of" in refusal(tmp_path / "shard")


def test_missing_and_unreadable(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "cannot be read" in refusal(tmp_path)  # a folder


def test_a_shard_is_read_as_a_stream(tmp_path):
    """The first record comes before the second is looked at: were the file read whole, its damage
    would be met first."""
    shard = record(b"first") + flipped(record(b"second"), 13)
    (tmp_path / "shard").write_bytes(gzip.compress(shard))
    found = tfrecord.records(tmp_path / "shard")
    assert next(found) == b"first"
    with pytest.raises(UserError, match="record 1"):
        next(found)
