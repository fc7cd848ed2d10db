"""Recordings by URL, from a server with TLS on this machine that stands for a public one."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import url_source
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from function_errors import SourceError, Unavailable
from url_source import fetch

from tests.unit.doubles import serving
from whispercore.errors import TooLarge

HOST = "recordings.example"
BODY = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/to":
            self.send_response(302)
            self.send_header("Location", query)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path == "/a b.wav" or self.path == "/a%20b.wav?signature=x%2By" or path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY) + (path == "/cut")))
            self.end_headers()
            self.wfile.write(BODY)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The server's address. Its name is resolved to this machine, and its certificate is trusted."""
    certificate = certificate_in(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    public = url_source._public_address
    monkeypatch.setattr(url_source, "_public_address", lambda host, port: "127.0.0.1" if host == HOST else public(host, port))
    with serving(httpd):
        yield f"https://{HOST}:{httpd.server_port}"


def certificate_in(folder: Path) -> Path:
    """A file with a key and a certificate for HOST."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_signed_url_and_a_redirect_are_fetched(server: str) -> None:
    assert fetch(f"{server}/a%20b.wav?signature=x%2By", len(BODY)) == BODY
    assert fetch(f"{server}/to?/a%20b.wav?signature=x%2By", len(BODY)) == BODY


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/none", "status 404"),
        ("/to?http://127.0.0.1/", "must be an https address"),
        ("/to?https://127.0.0.1:9001/2018-06-01/runtime/invocation/next", "not a public address"),
        ("/to?/to", "status 302"),
    ],
)
def test_what_is_no_recording_is_refused(server: str, path: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        fetch(server + path, len(BODY))


def test_endless_redirects_end(server: str) -> None:
    address = f"{server}/none"
    for _ in range(url_source._REDIRECTS + 1):
        address = f"{server}/to?{address}"
    with pytest.raises(SourceError, match="redirected more than"):
        fetch(address, len(BODY))


def test_a_transfer_that_breaks_off_is_worth_another_try(server: str) -> None:
    with pytest.raises(Unavailable, match="broke off before its end"):
        fetch(f"{server}/cut", 1 << 20)


def test_more_bytes_than_allowed_are_not_read(server: str) -> None:
    with pytest.raises(TooLarge, match=r"more than 100 bytes"):
        fetch(f"{server}/a%20b.wav?signature=x%2By", 100)


def test_another_certificate_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_source, "_public_address", lambda host, port: "127.0.0.1")
    with pytest.raises(Unavailable, match="does not answer"):
        fetch(server.replace(HOST, "other.example"), 100)


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a.wav", "file:///etc/passwd", "https://", "https://u@a.org/", "https://[::1", "https://a:b/", "s3://a/b"],
)
def test_only_https_is_fetched(url: str) -> None:
    with pytest.raises(SourceError, match="must be an https address"):
        fetch(url, 100)


PRIVATE = ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "2130706433"]
PRIVATE_6 = ["[::1]", "[::ffff:127.0.0.1]", "[fd00:ec2::254]"]


@pytest.mark.parametrize("host", [*PRIVATE, *PRIVATE_6])
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(SourceError, match="not a public address"):
        fetch(f"https://{host}/latest/meta-data", 100)


def test_an_unknown_host_says_so() -> None:
    with pytest.raises(SourceError, match="there is no host"):
        fetch("https://no-such-host.invalid/a.wav", 100)
