"""The guard in front of the management API, before a stand-in for TorchServe on a Unix socket."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server.management import ManagementGuard, refusal


class _TorchServe(HTTPServer):
    address_family = socket.AF_UNIX
    asked: list[str]

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _TorchServe

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"{self.command} {self.path} {body.decode()}".strip())
        self.send_response(405 if self.command == "DELETE" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_PUT = do_DELETE = do_POST = do_OPTIONS = answer

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def torchserve(tmp_path: Path) -> Iterator[_TorchServe]:
    server = _TorchServe(str(tmp_path / "management.sock"), _Answer)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def guard(torchserve: _TorchServe, tmp_path: Path) -> Iterator[ManagementGuard]:
    guard = ManagementGuard("127.0.0.1", 0, tmp_path / "management.sock")
    yield guard
    guard.close()


def ask(guard: ManagementGuard, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", guard.port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_what_is_harmless_is_passed_on(guard: ManagementGuard, torchserve: _TorchServe) -> None:
    assert ask(guard, "GET", "/models").status == 200
    assert ask(guard, "GET", "/models/whisper?customized=false").status == 200
    assert ask(guard, "PUT", "/models/whisper?min_worker=1&max_worker=1").status == 200
    assert ask(guard, "DELETE", "/models/whisper").status == 405
    assert ask(guard, "GET", "/models/whisper", Host="localhost:8081").headers["Content-Type"] == "application/json"
    assert torchserve.asked == [
        "GET /models",
        "GET /models/whisper?customized=false",
        "PUT /models/whisper?min_worker=1&max_worker=1",
        "DELETE /models/whisper",
        "GET /models/whisper",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/models/whisper?customized=true",
        "/models/whisper/1.0?customized=true",
        "/models/whisper?customized=TRUE",
        "/models/whisper?a=b&customized=true",
        "/models/whisper?customized=false&customized=true",
        "/models/whisper?%63ustomized=%74rue",
        "/models/whisper?Customized=true",
        "/models/whisper?customized=true;x",
        "//models/whisper?customized=1",
    ],
)
def test_a_customized_description_is_refused(guard: ManagementGuard, torchserve: _TorchServe, path: str) -> None:
    assert ask(guard, "GET", path).status == 400
    assert torchserve.asked == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8081"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example", "Host": "localhost:8081"}, 403),
        ({"Origin": "null", "Host": "localhost:8081"}, 403),
        ({"Origin": "http://localhost:8081", "Host": "localhost:8081", "Sec-Fetch-Site": "same-origin"}, None),
        ({"Host": "[::1]:8081"}, None),
        ({"Host": "127.0.0.1:8081"}, None),
        ({}, None),
    ],
)
def test_web_pages_are_refused(headers: dict[str, str], status: int | None) -> None:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    refused = refusal("GET", "/models", message, loopback=True)
    assert (refused and refused.status) == status
    assert refusal("GET", "/models", Message(), loopback=False) is None


def test_a_published_port_may_have_any_name() -> None:
    message = Message()
    message["Host"] = "whisper.internal:8081"
    assert refusal("GET", "/models", message, loopback=False) is None


@pytest.mark.parametrize("query", ["min_worker=0", "min_worker=-1", "max_worker=2", "min_worker=1&max_worker=3"])
def test_another_number_of_workers_is_refused(guard: ManagementGuard, torchserve: _TorchServe, query: str) -> None:
    assert ask(guard, "PUT", f"/models/whisper?{query}&synchronous=true").status == 400
    assert torchserve.asked == []


def test_a_large_body_is_refused(guard: ManagementGuard, torchserve: _TorchServe) -> None:
    with socket.create_connection(("127.0.0.1", guard.port), timeout=10) as connection:
        connection.sendall(b"POST /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", guard.port), timeout=10) as connection:
        connection.sendall(b"POST /models HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert torchserve.asked == []


def test_a_server_that_is_gone_is_told(guard: ManagementGuard, tmp_path: Path) -> None:
    (tmp_path / "management.sock").unlink()
    assert ask(guard, "GET", "/models").status == 503


def test_a_taken_port_is_an_error(guard: ManagementGuard, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError):
        ManagementGuard("127.0.0.1", taken.getsockname()[1], tmp_path / "management.sock")
