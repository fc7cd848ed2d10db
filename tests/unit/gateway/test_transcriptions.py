"""The routes that transcribe, over a real connection."""

from __future__ import annotations

import base64
import errno
import http.client
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Message

from gateway.backend import Call, Reply
from gateway.inprocess import InProcess
from gateway.spool import Spool, SpoolWriter
from gateway.transcriptions import _Stream
from tests.unit.doubles import Recorder, wav
from tests.unit.gateway.conftest import CORE, MAX_BODY, Served, serve, wait_for
from whispercore.errors import ConfigurationError
from whispercore.serving.transcriber import Transcriber

AUDIO = wav(1.0)
FORM = {"content-type": "multipart/form-data; boundary=b"}
PLAIN = {"vad_filter": "false"}


def error_of(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json" and reply.headers["x-request-id"]
    error: dict[str, Any] = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.fixture
def text(served: Served) -> str:
    return str(served.client.post("/v1/audio/transcriptions", files={"file": AUDIO}, data=PLAIN).json()["text"])


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param({"files": {"file": AUDIO}, "data": PLAIN}, id="form"),
        pytest.param({"files": {"audio": AUDIO}, "data": PLAIN}, id="another name"),
        pytest.param({"files": {"file": (None, AUDIO)}, "data": PLAIN}, id="a file without a name"),
        pytest.param({"files": {"file": AUDIO}, "params": PLAIN}, id="query"),
        pytest.param({"content": AUDIO, "headers": {"X-Whisper-Vad-Filter": "false"}}, id="raw"),
        pytest.param({"content": AUDIO, "params": PLAIN, "headers": {"content-type": "audio/wav"}}, id="raw with a query"),
        pytest.param({"json": {"audio": base64.b64encode(AUDIO).decode(), "vad_filter": False}}, id="JSON"),
        pytest.param({"data": {"audio": "x", **PLAIN}, "expect": 415}, id="url-encoded"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/predictions/whisper", "/invocations"])
def test_every_form_of_a_request(served: Served, text: str, path: str, request_of: dict[str, Any]) -> None:
    arguments = dict(request_of)
    status = arguments.pop("expect", 200)
    reply = served.client.post(path, **arguments)
    assert reply.status_code == status, reply.text
    if status == 200:
        assert reply.json()["text"] == text


def test_nothing_is_left_in_the_spool(served: Served, text: str) -> None:
    assert list(served.app.state.gateway.spool.folder.iterdir()) == []


def test_a_stream_ends_with_the_whole_text(served: Served, text: str) -> None:
    reply = served.client.post("/v1/audio/transcriptions", files={"file": AUDIO}, data={**PLAIN, "stream": "true"})
    events = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line.startswith("data: ")]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert events[-1]["type"] == "transcript.text.done" and events[-1]["text"] == text


@pytest.mark.parametrize(
    ("arguments", "status", "param", "code"),
    [
        pytest.param({"content": b""}, 400, "file", "missing_required_parameter", id="nothing"),
        pytest.param({"files": {"file": b""}}, 400, "file", "empty_file", id="an empty file"),
        pytest.param({"files": {"file": b"no sound at all"}}, 415, None, "unsupported_audio", id="no audio"),
        pytest.param({"files": {"file": AUDIO}, "data": {"beam_sise": "1"}}, 400, "beam_sise", "unknown_parameter", id="a misspelt field"),
        pytest.param({"files": {"file": AUDIO}, "data": {"temperature": "9"}}, 400, "temperature", "invalid_value", id="a bad value"),
        pytest.param({"files": {"file": AUDIO, "audio": AUDIO}}, 400, "file", None, id="two recordings"),
        pytest.param({"files": [("file", AUDIO), ("file", AUDIO)]}, 400, "file", None, id="a field with two files"),
        pytest.param({"data": {f"a{number}": "" for number in range(1001)}}, 400, None, "too_many_fields", id="many fields"),
        pytest.param({"files": [("file", b"x")] * 101}, 400, None, "too_many_fields", id="many files"),
        pytest.param({"files": {"file": AUDIO}, "data": {"prompt": "x" * 1_100_000}}, 413, None, "too_large", id="a long field"),
        pytest.param({"content": bytes(MAX_BODY + 1)}, 413, "file", "too_large", id="a large body"),
        pytest.param({"content": iter([bytes(65536)] * 40)}, 413, "file", "too_large", id="a large body of unknown length"),
        pytest.param({"content": bytes(MAX_BODY // 2 + 1)}, 413, "file", "too_large", id="more than max_audio_bytes"),
        pytest.param({"content": b"{", "headers": {"content-type": "application/json"}}, 400, None, "invalid_json", id="broken JSON"),
        pytest.param(
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, None, "invalid_form", id="a form without a boundary"
        ),
        pytest.param(
            {
                "content": b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx',
                "headers": FORM,
            },
            400,
            None,
            "invalid_form",
            id="a form that is cut short",
        ),
        pytest.param(
            {
                "content": b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--",
                "headers": FORM,
            },
            400,
            None,
            "invalid_form",
            id="a part without a name",
        ),
        pytest.param({"data": {"url": "file:///etc/passwd"}}, 400, "url", "invalid_value", id="a URL of a file"),
        pytest.param({"data": {"url": "http://localhost/"}}, 403, "url", "forbidden", id="a URL where none are fetched"),
        pytest.param({"files": {"file": AUDIO}, "data": {"url": "http://a.example/"}}, 400, "url", "invalid_value", id="a file and a URL"),
    ],
)
def test_refusals(served: Served, arguments: dict[str, Any], status: int, param: str | None, code: str | None) -> None:
    error = error_of(served.client.post("/v1/audio/transcriptions", **arguments), status)
    assert param in (None, error["param"]) and code in (None, error["code"])


def test_unknown_paths_and_methods(served: Served) -> None:
    assert error_of(served.client.get("/nothing"), 404)["code"] == "not_found"
    assert "POST" in error_of(served.client.get("/v1/audio/transcriptions"), 405)["message"]
    refused = served.client.put("/v1/jobs")
    assert "use GET, POST" in error_of(refused, 405)["message"] and refused.headers["allow"] == "GET, POST"
    assert error_of(served.client.get("/v1/jobs", params={"limit": "many"}), 400)["param"] == "limit"


def test_ids(served: Served) -> None:
    """A client's own id is repeated; one that cannot be repeated is replaced."""
    reply = served.client.post("/predictions/whisper", content=AUDIO, headers={"x-request-id": "order-66"})
    assert reply.headers["x-request-id"] == "order-66"
    assert len(served.client.get("/health/live", headers={"x-request-id": "x" * 500}).headers["x-request-id"]) == 32


def test_models_and_health(served: Served) -> None:
    [model] = served.client.get("/v1/models").json()["data"]
    assert served.client.get(f"/v1/models/{model['id']}").json() == model
    error_of(served.client.get("/v1/models/nothing"), 404)
    assert served.client.get("/health/live").status_code == served.client.get("/health/ready").status_code == 200
    assert served.client.get("/ping").json()["status"] == "ready"


def test_torchserves_paths_work_here_too(served: Served) -> None:
    base = "/predictions/whisper/1.0"
    assert served.client.get(f"{base}/v1/models").json() == served.client.get("/v1/models").json()
    assert served.client.get(f"{base}/health/ready").status_code == 200


def test_a_data_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="WHISPER_DATA_DIR"), serve(tmp_path, data=tmp_path / "file" / "data"):
        pass


def test_metrics_have_closed_labels(served: Served) -> None:
    for path in ("/a", "/b", "/v1/models/x"):
        served.client.get(path)
    text = served.client.get("/metrics").text
    assert 'route="other"' in text and 'route="/a"' not in text and 'route="/v1/models/{model:path}"' in text
    assert served.metric("whisper_open_requests") == 0


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    content=st.binary(max_size=300), kind=st.sampled_from(["multipart/form-data; boundary=b", "application/json", "text/csv", "\x7f", ""])
)
def test_no_body_is_a_server_error(served: Served, content: bytes, kind: str) -> None:
    reply = served.client.post(
        "/v1/audio/transcriptions", content=content.replace(b"\0", b"--b\r\n"), headers={"content-type": kind.encode()}
    )
    assert 400 <= reply.status_code < 500, reply.text


class Broken(InProcess):
    """Fails with an error that nothing foresees."""

    async def send(self, call: Call) -> Reply:
        raise ZeroDivisionError


def test_an_unforeseen_error_is_a_500_in_the_reply_and_in_the_metrics(tmp_path: Path) -> None:
    with serve(tmp_path, backend=Broken(lambda: Transcriber(CORE, engine=Recorder()))) as served:
        reply = served.client.post("/predictions/whisper", content=AUDIO, headers={"x-request-id": "mine"})
        assert error_of(reply, 500) and reply.headers["x-request-id"] == "mine"
        metrics = served.client.get("/metrics", headers={"x-request-id": "2"})
        assert 'whisper_gateway_requests_total{route="/predictions/whisper",status="500"} 1.0' in metrics.text
        assert not list(served.app.state.gateway.spool.folder.iterdir())


def test_a_stream_whose_client_goes_before_its_first_chunk_frees_everything() -> None:
    closed: list[str] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"a"

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await anyio.sleep(0)

    async def answer() -> None:
        stack = AsyncExitStack()
        stack.callback(closed.append, "closed")
        reply = Reply(status=200, content_type="text/event-stream", body=chunks())
        await _Stream(reply, {}, stack)({"type": "http", "asgi": {"spec_version": "2.3"}}, gone, send)

    anyio.run(answer)
    assert closed == ["closed"]


def test_files_of_a_form_that_fails_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the second file, or the form ends too early."""
    write = SpoolWriter._write

    def fail_on_the_second(writer: SpoolWriter, data: bytes) -> None:
        if b"second" in data:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, data)

    monkeypatch.setattr(SpoolWriter, "_write", fail_on_the_second)
    with serve(tmp_path) as served:
        full = served.client.post("/v1/jobs", files=[("file", ("a", b"first")), ("file", ("b", b"second"))])
        assert error_of(full, 503)["code"] == "storage_full" and full.headers["retry-after"]
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nfirst\r\n--x\r\n'
        kind = {"content-type": "multipart/form-data; boundary=x"}
        assert error_of(served.client.post("/v1/jobs", content=part, headers=kind), 400)["code"] == "invalid_form"
        assert not list(served.app.state.gateway.spool.folder.iterdir())


def test_a_start_removes_the_uploads_of_the_last_one_and_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a")
    (tmp_path / ("0a" * 16)).write_text("an upload")
    Spool(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="WHISPER_SPOOL_DIR"):
        Spool(tmp_path / "file" / "spool")


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_client_that_leaves_cancels_its_request(tmp_path: Path, stream: str) -> None:
    """Nothing of it remains: no open request, no file, no window that is decoded."""
    engine = Recorder(max_batch=1)
    engine.gate.clear()
    with serve(tmp_path, engine=engine) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("POST", f"/predictions/whisper?vad_filter=false&stream={stream}", wav(20.0))
        wait_for(lambda: served.metric("whisper_open_requests") == 1, "the request is open")
        connection.close()
        wait_for(lambda: served.metric("whisper_open_requests") == 0, "the request is cancelled")
        wait_for(lambda: not list(served.app.state.gateway.spool.folder.iterdir()), "the upload is removed")
