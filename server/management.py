"""A guard in front of TorchServe's management API, which listens on a Unix socket behind it.

`GET /models/whisper?customized=true` puts a job into TorchServe's queue that is handed out again and again, so that no other
request is ever answered: Model.pollInferJob of TorchServe 0.12 puts a describe job back in front after it has taken it. A web page
can send such a request. The guard refuses it, requests of web pages, and a number of workers with which nothing is answered.
Everything else is passed on.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import threading
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

SOCKET_FILE = "management.sock"
TIMEOUT_SECONDS = 30.0
MAX_BODY = 64 * 1024
"""Bytes. The management API takes its arguments from the query."""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "proxy-connection", "content-length"}


class Refusal(NamedTuple):
    """Why a request is not passed on."""

    status: int
    message: str


class ManagementGuard:
    """Listens on the management address and passes what is allowed on to the socket. Raises OSError when the port is taken."""

    def __init__(self, host: str, port: int, target: Path) -> None:
        self._server = _Server((host, port), _Handler)
        self._server.target = target
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="management", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def refusal(method: str, target: str, headers: Message, *, loopback: bool) -> Refusal | None:
    """Why the request must not reach TorchServe, None when it may. `loopback`: it came to an address of this machine only."""
    query = {name.lower(): values for name, values in parse_qs(urlsplit(target).query, keep_blank_values=True).items()}
    if any(value.strip().lower() not in ("", "false") for value in query.get("customized", ())):
        return Refusal(400, "customized descriptions are not offered: TorchServe would answer nothing else after one; leave customized out")
    if loopback and not _is_local_name(headers.get("Host", "localhost")):
        return Refusal(403, f"the management API is for this machine: ask for it as localhost or 127.0.0.1, not as {headers['Host']!r}")
    if headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin") or _is_foreign(headers):
        return Refusal(403, "the management API is not for web pages")
    if method == "PUT":
        for name in ("min_worker", "max_worker"):
            if any(value.strip() != "1" for value in query.get(name, ())):
                return Refusal(400, f"{name} must be 1: one worker owns every device, and with another number no request is answered")
    return None


def _is_local_name(host: str) -> bool:
    """Whether a Host header names this machine by an address or as localhost; a name of a web site's own may lead here, too."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _is_foreign(headers: Message) -> bool:
    """Whether a browser sends the request for a page of another address."""
    origin = headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("Host")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    target: Path

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached from this machine only."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS
    server: _Server

    def handle_one_request(self) -> None:
        """Any method is passed on: TorchServe says which it knows."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or len(self.raw_requestline) > 65536:
            self.close_connection = True
            return
        if not self.parse_request():
            return
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY or "Transfer-Encoding" in self.headers:
            self._refuse(Refusal(413, f"a body of the management API has at most {MAX_BODY} bytes, and a Content-Length"))
            return
        body = self.rfile.read(int(length))
        if refused := refusal(self.command, self.path, self.headers, loopback=self.server.is_loopback):
            self._refuse(refused)
            return
        self._pass_on(body)

    def _pass_on(self, body: bytes) -> None:
        connection = _UnixConnection(self.server.target)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(self.command, self.path, body or None, kept)
            response = connection.getresponse()
            content = response.read()
        except OSError as error:
            self._refuse(Refusal(503, f"TorchServe does not answer on its management socket: {error}"))
            return
        finally:
            connection.close()
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self._finish(content)

    def _refuse(self, refused: Refusal) -> None:
        """Answer in the form of TorchServe's own errors."""
        content = json.dumps({"code": refused.status, "type": "ManagementRefused", "message": refused.message}, indent=2) + "\n"
        self.send_response_only(refused.status)
        self.send_header("Content-Type", "application/json")
        self.close_connection = True
        self._finish(content.encode())

    def _finish(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """TorchServe logs what reaches it."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
