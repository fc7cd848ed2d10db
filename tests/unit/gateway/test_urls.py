"""Recordings by URL, and what must not be fetched."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.urls import check_url, is_public
from tests.unit.doubles import serving, wav
from tests.unit.gateway.conftest import MAX_BODY, Served, serve
from whispercore.errors import InvalidRequest

AUDIO = wav(1.0)


class Files(BaseHTTPRequestHandler):
    """A server of recordings; it notes what is asked of it."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/redirect/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/redirect/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = {"/speech.wav": AUDIO, "/large": bytes(MAX_BODY + 1), "/empty": b""}.get(self.path)
        self.send_response(200 if body is not None else 404)
        if self.path != "/large":
            self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    with serving(server):
        yield f"http://localhost:{server.server_port}"


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway that fetches URLs, also from localhost by that name."""
    with serve(tmp_path_factory.mktemp("fetching"), allow_urls=True, private_hosts=("localhost",)) as running:
        yield running


def post(served: Served, url: str, **arguments: object) -> tuple[int, dict[str, str]]:
    reply = served.client.post("/v1/audio/transcriptions", data={"url": url, "vad_filter": "false"}, **arguments)
    return reply.status_code, reply.json().get("error") or reply.json()


def test_a_recording_is_fetched(fetching: Served, files: str) -> None:
    expected = fetching.client.post("/v1/audio/transcriptions", files={"file": AUDIO}, data={"vad_filter": "false"}).json()["text"]
    assert post(fetching, f"{files}/speech.wav")[1]["text"] == expected
    assert post(fetching, f"{files}/redirect//speech.wav")[1]["text"] == expected
    body: dict[str, Any] = {"url": f"{files}/speech.wav", "vad_filter": False}
    assert fetching.client.post("/predictions/whisper", json=body).json()["text"] == expected
    assert fetching.client.post("/predictions/whisper", params={**body, "vad_filter": "false"}).json()["text"] == expected
    assert list(fetching.app.state.gateway.spool.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nothing", 400, "url_failed"),
        ("/large", 413, "too_large"),
        ("/empty", 400, "empty_file"),
        ("/redirect/" * 7 + "/speech.wav", 400, "url_failed"),
    ],
)
def test_what_cannot_be_fetched_is_told(fetching: Served, files: str, path: str, status: int, code: str) -> None:
    got, error = post(fetching, files + path)
    assert (got, error["code"], error["param"]) in [(status, code, "url"), (status, code, "file")]


def test_private_addresses_are_refused_also_after_a_redirect(fetching: Served, files: str) -> None:
    private = files.replace("localhost", "127.0.0.1")
    Files.asked.clear()
    for url in (f"{private}/speech.wav", f"{files}/redirect/{private}/speech.wav", private.replace("127.0.0.1", "[::ffff:127.0.0.1]")):
        status, error = post(fetching, url)
        assert (status, error["code"]) == (403, "url_refused"), url
        assert error["message"].endswith("has an address that is not public")
    assert Files.asked == [f"/redirect/{private}/speech.wav"], "nothing was fetched from the private address"
    assert post(fetching, f"{files}/redirect/file:///etc/passwd")[0] == 400


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "198.18.0.1", "240.0.0.1"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1"),
        *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "fec0::1", "192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_public_addresses() -> None:
    assert all(is_public(address) for address in ("1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "93.184.216.34"))


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "ftp://a/b", "file:///etc/passwd", "http://", "http:///a", "gopher://a", "http://a:b:c/", "http://a\n", "//a/b"),
        pytest.param("http://a/" + "x" * 5000, id="long"),
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(url)


def test_urls_are_off_on_a_published_server(tmp_path: Path) -> None:
    with serve(tmp_path) as served:
        assert post(served, "http://example.com/a.wav")[0] == 403
