"""The back end before TorchServe, against a server that behaves and misbehaves as TorchServe does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.torchserve import TorchServe
from tests.unit.doubles import serving, wav
from tests.unit.gateway.conftest import Served, free_port, serve
from whispercore.errors import InvalidRequest
from whispercore.torchserve.spool import KEY, message, unpack

AUDIO = wav(1.0)
OWN_503 = b'{"code": 503, "type": "ServiceUnavailableException", "message": "Model has no worker to serve inference request."}'


class Worker(BaseHTTPRequestHandler):
    """Answers with what the test has set, and keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    reply: ClassVar[tuple[int, str, bytes]] = (200, "application/json", b"{}")
    breaks: ClassVar[bool] = False
    asked: ClassVar[list[tuple[str, dict[str, Any], bytes]]] = []
    spool: ClassVar[Path]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))[KEY]
        tokens = [token for tokens in body["uploads"].values() for token in tokens]
        self.asked.append((self.path, body, b"".join((self.spool / token).read_bytes() for token in tokens)))
        status, kind, payload = self.reply
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("x-whisper-audio-seconds", "1.5")
        self.send_header("Content-Length", str(len(payload) + self.breaks))
        self.end_headers()
        self.wfile.write(payload)
        if self.breaks:
            self.close_connection = True

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        payload = b"whisper_windows_total 3.0\n" if self.path == "/metrics" else b'{"status":"ready"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, server = tmp_path_factory.mktemp("torchserve"), ThreadingHTTPServer(("127.0.0.1", 0), Worker)
    Worker.spool = folder / "spool"
    url = f"http://127.0.0.1:{server.server_port}"
    with serving(server), serve(folder, backend=TorchServe(url, url)) as running:
        yield running


@pytest.fixture(autouse=True)
def healthy() -> None:
    Worker.reply, Worker.breaks = (200, "application/json", b'{"text":"hello"}'), False
    Worker.asked.clear()


def post(served: Served, **arguments: Any) -> Any:
    return served.client.post("/v1/audio/transcriptions", files={"file": AUDIO}, **arguments)


def test_the_upload_goes_by_the_spool_and_the_fields_as_json(served: Served) -> None:
    reply = post(
        served, data={"languages[]": ["en", "de"], "prompt": "Grüße"}, headers={"x-whisper-client": "me", "authorization": "Bearer x"}
    )
    [(path, body, audio)] = Worker.asked
    assert reply.json() == {"text": "hello"} and audio == AUDIO
    assert path == "/predictions/whisper/1.0/v1/audio/transcriptions"
    assert body["fields"] == {"languages[]": ["en", "de"], "prompt": "Grüße"}
    assert body["headers"]["x-whisper-client"] == "address:127.0.0.1" and "authorization" not in body["headers"]
    assert list(Worker.spool.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ((503, "application/json", OWN_503), 503, "overloaded"),
        ((507, "application/json", OWN_503), 503, "overloaded"),
        ((500, "application/json", b'{"code": 500, "message": "Worker died."}'), 500, "worker_died"),
        ((507, "application/json", b'{"code": 507, "message": "Worker died."}'), 500, "worker_died"),
        ((500, "text/html", b"<h1>"), 500, "worker_died"),
        (
            (422, "application/json", b'{"error":{"message":"m","type":"t","param":null,"code":"unreadable_audio"}}'),
            422,
            "unreadable_audio",
        ),
    ],
)
def test_torchserves_own_errors_take_our_form(served: Served, answer: tuple[int, str, bytes], status: int, code: str) -> None:
    Worker.reply = answer
    reply = post(served)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert status != 503 or int(reply.headers["retry-after"]) > 0


def test_a_worker_that_dies_while_it_answers(served: Served) -> None:
    Worker.breaks = True
    assert post(served).json()["error"]["code"] == "worker_died"
    Worker.reply = (200, "text/event-stream", b'data: {"type":"transcript.text.delta","delta":"a"}\n\n')
    events = [line for line in post(served, data={"stream": "true"}).text.splitlines() if line]
    assert len(events) == 2 and "worker_died" in events[1]


def test_a_worker_that_is_not_there(tmp_path: Path) -> None:
    with serve(tmp_path, backend=TorchServe(f"http://127.0.0.1:{free_port()}")) as served:
        reply = post(served)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "worker_down") and reply.headers["retry-after"]
        assert served.client.get("/health/ready").status_code == 503 and served.client.get("/health/live").status_code == 200


def test_both_processes_metrics_are_on_one_page(served: Served) -> None:
    text = served.client.get("/metrics").text
    assert "whisper_windows_total 3.0" in text and "whisper_gateway_requests_total" in text


def test_a_spooled_request_is_unpacked_in_the_worker(tmp_path: Path) -> None:
    token = "0123456789abcdef" * 2
    (tmp_path / token).write_bytes(AUDIO)
    body = message({"language": "en"}, {"accept": "text/plain"}, {"file": [token]})
    spooled = unpack({"body": body}, {"url_path": "v1/models", "Content-Type": "application/json"}, tmp_path)
    assert spooled and bytes(spooled.fields["file"]) == AUDIO and spooled.fields["language"] == "en"
    assert spooled.headers == {"accept": "text/plain", "url_path": "v1/models"} and not spooled.is_gone
    (tmp_path / token).unlink()
    assert spooled.is_gone and bytes(spooled.fields["file"]) == AUDIO


@pytest.mark.parametrize(
    "content",
    [
        *({}, [], None, "x", {"uploads": []}, {"uploads": {}, "fields": 3, "headers": {}}),
        *({"uploads": {"file": tokens}, "fields": {}, "headers": {}} for tokens in (["../secret"], ["a" * 32], [3], "a" * 32)),
    ],
)
def test_a_client_cannot_use_the_spool(tmp_path: Path, content: Any) -> None:
    (tmp_path.parent / "secret").write_bytes(AUDIO)
    with pytest.raises(InvalidRequest):
        unpack({"body": {KEY: content}}, {}, tmp_path)
    assert unpack({"body": b"RIFF"}, {}, tmp_path) is None and unpack({"body": {"audio": "x"}}, {}, tmp_path) is None
