"""The Caddyfile in a real Caddy: TLS, what is public and what is not, sizes, streams, websockets, times."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.sync.client import connect

from gateway.configuration import Configuration
from tests.deploy.binaries import ROOT, binary
from tests.deploy.compose.front_door import StandIn, serving
from tests.serve.server import free_ports, wait_for

CADDYFILE = ROOT / "deploy" / "compose" / "Caddyfile"
LIMIT = Configuration.load({}).max_body_bytes
UNTESTED = "the proxy's configuration is not tested"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running Caddy before a stand-in. `certificate`: what clients have to trust."""

    port: int
    stand_in: StandIn
    certificate: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, verify=str(self.certificate), timeout=30, **options)

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(self.url + path, data=body, verify=str(self.certificate), timeout=120, **options)

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("certificates")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = [binary("openssl", UNTESTED), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    files = ["-out", str(folder / "certificate.pem"), "-keyout", str(folder / "key.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return folder


@contextlib.contextmanager
def caddy(folder: Path, certificates: Path, upstream: str, timeout: str) -> Iterator[int]:
    """The HTTPS port of a Caddy that runs the Caddyfile, changed only in its two ports."""
    https, http = free_ports(2)
    options = f"{{\n\thttps_port {https}\n\thttp_port {http}\n"
    configuration = CADDYFILE.read_text()
    assert configuration.count("{\n\tadmin off\n") == 1
    (folder / "Caddyfile").write_text(configuration.replace("{\n\tadmin off\n", f"{options}\tadmin off\n"))
    environment = os.environ | {
        "WHISPER_HOST": "localhost",
        "WHISPER_TLS": f"tls {certificates / 'certificate.pem'} {certificates / 'key.pem'}",
        "WHISPER_UPSTREAM": upstream,
        "WHISPER_TIMEOUT": timeout,
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    command = [binary("caddy", UNTESTED), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            wait_for(lambda: _listens(https) or process.poll() is not None, 30, "Caddy listens")
            assert process.poll() is None, (folder / "log").read_text()
            yield https
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def proxy_before(stand_in: StandIn, folder: Path, certificates: Path, timeout: str) -> Iterator[Proxy]:
    with serving(stand_in) as upstream, caddy(folder, certificates, f"127.0.0.1:{upstream}", timeout) as port:
        yield Proxy(port, stand_in, certificates / "certificate.pem")


@pytest.fixture
def proxy(certificate: Path, tmp_path: Path) -> Iterator[Proxy]:
    with proxy_before(StandIn(), tmp_path, certificate, "900s") as running:
        yield running


def adapted(**environment: str) -> dict[str, Any]:
    """The Caddyfile as Caddy's JSON."""
    known = os.environ | {"WHISPER_HOST": "localhost", "WHISPER_TLS": ""} | environment
    command = [binary("caddy", UNTESTED), "adapt", "--config", str(CADDYFILE)]
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=True)
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def handlers(part: Any) -> Iterator[dict[str, Any]]:
    """Every handler in Caddy's JSON."""
    if isinstance(part, dict):
        if "handler" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from handlers(item)


def test_caddy_accepts_the_file() -> None:
    done = subprocess.run([binary("caddy", UNTESTED), "validate", "--config", str(CADDYFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    formatted = subprocess.run([binary("caddy", UNTESTED), "fmt", str(CADDYFILE)], capture_output=True, text=True, check=False)
    assert formatted.stdout == CADDYFILE.read_text()


def test_the_limits_are_those_of_the_server() -> None:
    found = {handler["handler"]: handler for handler in handlers(adapted())}
    assert found["request_body"]["max_size"] == LIMIT
    transport = found["reverse_proxy"]["transport"]
    times = ("response_header_timeout", "read_timeout", "write_timeout")
    assert [transport[name] / 1e9 for name in times] == [900, 900, 900]
    assert found["reverse_proxy"]["upstreams"] == [{"dial": "whisper:8000"}]


def test_a_public_name_gets_a_certificate_by_itself() -> None:
    """No certificate of files, and no internal authority: ACME, as Caddy does by default."""
    assert "tls" not in adapted(WHISPER_HOST="whisper.example.com")["apps"]


def test_tls_with_an_own_certificate(proxy: Proxy) -> None:
    assert proxy.get("/v1/models").json() == {"path": "/v1/models", "received": 0}
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(proxy.url + "/v1/models", timeout=30)
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw, proxy.context.wrap_socket(raw, server_hostname="localhost") as secure:
        assert secure.version() == "TLSv1.3"


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/audio/transcriptions", "/predictions/whisper", "/predictions/whisper/a.mp3", "/health/ready"]
)
def test_what_is_public(proxy: Proxy, path: str) -> None:
    assert proxy.get(path).json()["path"] == path


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/metrics/",
        "/models",
        "/models/whisper",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/api-description",
        "//metrics",
        "/docs",
        "/openapi.json",
    ],
)
def test_metrics_and_management_are_not_public(proxy: Proxy, path: str) -> None:
    request = requests.Request("GET", proxy.url).prepare()
    request.url = proxy.url + path  # as it is: `requests` would resolve the dots
    with requests.Session() as session:
        reply = session.send(request, verify=str(proxy.certificate), timeout=30, allow_redirects=False)
    assert reply.status_code in (308, 404)
    assert "/metrics" not in proxy.stand_in.paths and not any(path.startswith("/models") for path in proxy.stand_in.paths)


def test_an_upload_of_150_megabytes_is_passed_on_while_it_arrives(proxy: Proxy) -> None:
    size, block = 150 * 1024 * 1024, bytes(1024 * 1024)

    def blocks() -> Iterator[bytes]:
        for number in range(size // len(block)):
            if number == 75:
                wait_for(lambda: proxy.stand_in.received > size // 4, 60, "the first half has reached the server")
            yield block

    reply = proxy.post("/v1/audio/transcriptions", blocks())
    assert reply.json() == {"path": "/v1/audio/transcriptions", "received": size}


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_larger_body_is_refused(proxy: Proxy, chunked: bool) -> None:
    body = bytes(LIMIT + 1)
    reply = proxy.post("/v1/audio/transcriptions", iter([body]) if chunked else body)
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "proxy_413"


@pytest.mark.parametrize(
    ("kind", "first", "second"), [("events", "data: first", "data: second"), ("lines", '{"part":"first"}', '{"part":"second"}')]
)
def test_a_stream_is_not_buffered(proxy: Proxy, kind: str, first: str, second: str) -> None:
    with proxy.get(f"/v1/audio/transcriptions?{kind}", stream=True) as reply:
        lines = (line.decode() for line in reply.iter_lines(chunk_size=1) if line)
        assert next(lines) == first
        proxy.stand_in.allowed.set()
        assert next(lines) == second


@pytest.mark.parametrize("query", ["events", "wait"])
def test_the_server_notices_a_client_that_goes(proxy: Proxy, query: str) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as raw, proxy.context.wrap_socket(raw, server_hostname="localhost") as secure:
        secure.sendall(f"GET /v1/audio/transcriptions?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_for(lambda: "/v1/audio/transcriptions" in proxy.stand_in.paths, 30, "the request has reached the server")
    assert proxy.stand_in.gone.wait(30)


def test_a_websocket_passes(proxy: Proxy) -> None:
    with connect(f"wss://localhost:{proxy.port}/v1/realtime", ssl=proxy.context) as session:
        session.send(bytes(100_000))
        assert session.recv() == bytes(100_000)
        session.send("text")
        assert session.recv() == "text"


def test_a_reply_that_takes_too_long_is_given_up(certificate: Path, tmp_path: Path) -> None:
    """With one second in the place of the 900: the same setting."""
    with proxy_before(StandIn(), tmp_path, certificate, "1s") as running:
        reply = running.get("/v1/audio/transcriptions?wait")
        assert reply.status_code == 504
        assert reply.json()["error"]["code"] == "proxy_504"
        assert running.stand_in.gone.wait(30)


def test_a_server_that_is_down(certificate: Path, tmp_path: Path) -> None:
    (unused,) = free_ports(1)
    with caddy(tmp_path, certificate, f"127.0.0.1:{unused}", "900s") as port:
        reply = requests.get(f"https://localhost:{port}/v1/models", verify=str(certificate / "certificate.pem"), timeout=30)
        assert reply.status_code == 502
        assert reply.json()["error"] == {"message": "Bad Gateway", "type": "proxy_error", "param": None, "code": "proxy_502"}


def test_the_log_has_no_keys(proxy: Proxy, tmp_path: Path) -> None:
    proxy.get("/v1/models", headers={"Authorization": "Bearer wk-secret-key"})
    log = tmp_path / "log"
    wait_for(lambda: '"uri":"/v1/models"' in log.read_text(), 30, "the access is logged")
    assert "wk-secret-key" not in log.read_text()
