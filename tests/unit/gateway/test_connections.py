"""HTTP itself: times, sizes, and the forms that smuggle a second request past a proxy."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

import gateway.body
import gateway.connections
from tests.unit.doubles import PATIENCE
from tests.unit.gateway.conftest import Served

HEADERS = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\n"


def exchange(port: int, *pieces: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(HEADERS + b"Content-Length: +5\r\n\r\nhello", id="a sign in Content-Length"),
        pytest.param(HEADERS + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", id="two lengths"),
        pytest.param(HEADERS + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="an unknown encoding"),
        pytest.param(HEADERS + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", id="a blank before the colon"),
        pytest.param(b"POST / HTTP/1.1\r\nX: a\r\n b\r\nHost: x\r\n\0\r\n\r\n", id="a zero byte"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", id="TLS"),
    ],
)
def test_what_is_not_strictly_http_is_refused_and_the_connection_closed(served: Served, request_bytes: bytes) -> None:
    reply = exchange(served.port, request_bytes + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reply.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501")) and reply.count(b"HTTP/1.1") == 1, reply


def test_headers_have_a_limit_of_size(served: Served) -> None:
    """The reply may be lost, because the rest of the headers is not read."""
    with contextlib.suppress(ConnectionResetError):
        assert exchange(served.port, HEADERS + b"X: " + b"x" * 200_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 4")


def test_a_length_beside_chunks_does_not_make_two_requests(served: Served) -> None:
    """RFC 9112, section 6.1: the chunks count, and the connection ends."""
    body = b"5\r\nhello\r\n0\r\n\r\n"
    reply = exchange(served.port, HEADERS + b"Connection: close\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert reply.count(b"HTTP/1.1") == 1, reply


def test_connection_close_is_honoured(served: Served) -> None:
    assert b"HTTP/1.1 200" in exchange(served.port, b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b" 200 " in exchange(served.port, b"GET /health/live HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HTTP/1.1\r\nHost:"])
def test_headers_have_a_limit_of_time(served: Served, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(gateway.connections, "HEADER_SECONDS", 0.2)
    assert exchange(served.port, sent).startswith(b"HTTP/1.1 408")


def test_a_body_has_a_limit_of_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.body, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(gateway.body, "DRAIN_SECONDS", 0.1)
    reply = exchange(served.port, HEADERS + b"Connection: close\r\nContent-Length: 100\r\n\r\n12345")
    assert reply.startswith(b"HTTP/1.1 408") and b"request_timeout" in reply


def test_a_body_that_drips_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.body, "SLOWEST_BYTES", 1e9)
    monkeypatch.setattr(gateway.body, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(gateway.body, "DRAIN_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) as connection:
        connection.sendall(HEADERS + b"Content-Length: 100000\r\n\r\n")
        connection.settimeout(0.05)
        deadline, received = time.monotonic() + PATIENCE, b""
        while not received and time.monotonic() < deadline:
            try:
                connection.sendall(b"x")
                received = connection.recv(1000)
            except TimeoutError:
                continue
    assert received.startswith(b"HTTP/1.1 408")


def test_idle_connections_do_not_occupy_anything_else(served: Served) -> None:
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(200)]
    assert served.client.get("/health/live").status_code == 200
    for connection in idle:
        connection.close()
