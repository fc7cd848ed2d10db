"""Messages from Java, held against TorchServe's own reader."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ts.protocol import otf_message_handler as torchserves

from whispercore.api.fields import MAX_FIELDS
from whispercore.torchserve.protocol import MessageReader, read_request

Field = tuple[str, str, bytes]


def sized(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


def message(headers: Iterable[tuple[str, str]], fields: Iterable[Field], identifier: str = "id-1") -> bytes:
    end = struct.pack("!i", -1)
    heads = b"".join(sized(name.encode()) + sized(value.encode()) for name, value in headers)
    return sized(identifier.encode()) + heads + end + b"".join(sized(n.encode()) + sized(t.encode()) + sized(v) for n, t, v in fields) + end


class Pieces:
    """A connection that hands over its bytes in pieces of a random size."""

    def __init__(self, data: bytes, largest: int = 1 << 20, seed: int = 0) -> None:
        self._data, self._largest, self._random = memoryview(data), largest, random.Random(seed)

    def recv(self, size: int) -> bytes:
        taken = self._data[: min(size, self._random.randint(1, self._largest))]
        self._data = self._data[len(taken) :]
        return bytes(taken)

    def recv_into(self, buffer: memoryview) -> int:
        taken = self.recv(len(buffer))
        buffer[: len(taken)] = taken
        return len(taken)


TYPES = ("", "application/json", "text/plain", "audio/wav", "application/octet-stream")
FIELDS = st.lists(st.tuples(st.text(max_size=8), st.sampled_from(TYPES), st.binary(max_size=40) | st.just(b'{"a": 1}')), max_size=6)


@given(fields=FIELDS, headers=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3), seed=st.integers(0, 1000))
def test_it_reads_what_torchserve_reads(fields: list[Field], headers: list[tuple[str, str]], seed: int) -> None:
    data = message(headers, fields) + message(headers, fields[::-1], "id-2") + struct.pack("!i", -1)
    reader = MessageReader(Pieces(data, largest=7, seed=seed))
    theirs = Pieces(data)
    for _ in range(3):
        assert read_request(reader) == torchserves._retrieve_request(theirs)


@pytest.mark.parametrize("size", [0, 1, 100_000, 262_144, 262_145, 3_000_000])
def test_a_body_of_any_size_is_whole(size: int) -> None:
    body = random.Random(size).randbytes(size)
    fields = [("a", "", b"x"), ("file", "audio/wav", body), ("b", "text/plain", b"y")]
    request = read_request(MessageReader(Pieces(message([], fields), largest=50_000)))
    assert request is not None
    assert [field["value"] for field in request["parameters"]] == [b"x", body, "y"]
    assert isinstance(request["parameters"][1]["value"], bytearray)


def test_too_many_fields_are_passed_over_and_the_next_message_is_read() -> None:
    fields = [(f"field{number}", "text/plain", b"v" * (number % 5)) for number in range(MAX_FIELDS * 30)]
    reader = MessageReader(Pieces(message([("h", "v")], fields) + message([], [("last", "", b"1")], "id-2"), largest=5000))
    first, second = read_request(reader), read_request(reader)
    assert first is not None and second is not None
    assert len(first["parameters"]) == MAX_FIELDS + 1
    assert second["requestId"] == b"id-2" and second["parameters"][0]["value"] == b"1"


def test_json_that_is_broken_or_deep_stays_bytes() -> None:
    for body in (b"{", b"[" * 100_000, b"\xff"):
        request = read_request(MessageReader(Pieces(message([], [("body", "application/json", body)]))))
        assert request is not None and request["parameters"][0]["value"] == body


def test_json_is_parsed() -> None:
    request = read_request(MessageReader(Pieces(message([], [("body", "application/json", json.dumps({"language": "en"}).encode())]))))
    assert request is not None and request["parameters"][0]["value"] == {"language": "en"}


def test_a_closed_connection_ends_the_worker() -> None:
    with pytest.raises(SystemExit):
        read_request(MessageReader(Pieces(message([], [("file", "", b"12345")])[:-10])))
    with pytest.raises(SystemExit):
        read_request(MessageReader(Pieces(message([], [("file", "", b"1" * 500_000)])[:-100_000])))


def test_it_reads_a_real_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(message([], [("file", "", b"123")]))
        request = read_request(MessageReader(ours))
        assert request is not None and request["parameters"][0]["value"] == b"123"
