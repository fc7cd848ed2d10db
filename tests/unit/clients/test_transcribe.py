"""The client scripts against a small HTTP server that answers as ours does, and as a broken one does."""

from __future__ import annotations

import importlib.util
import io
import json
import mimetypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

CLIENTS = Path(__file__).resolve().parents[3] / "clients"
sys.path.insert(0, str(CLIENTS))

import bulk_request  # noqa: E402
import download_audio  # noqa: E402
import endpoint  # noqa: E402
import recordings  # noqa: E402
import soundtrack  # noqa: E402
import transcribe  # noqa: E402
import transcript  # noqa: E402

from tests.unit.clients.terminals import on_a_terminal, read_until  # noqa: E402

BUSY = json.dumps({"error": {"message": "too many requests are open", "type": "server_error", "param": None, "code": "overloaded"}})
TORCHSERVE = json.dumps({"code": 503, "type": "ServiceUnavailableException", "message": "no worker is available"})


class Handler(BaseHTTPRequestHandler):
    """Answers by the path: /ok, /busy, /slow …; keeps what arrived in `server.seen`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if "models" in self.path:
            listed = self.server.models.get(self.path)  # type: ignore[attr-defined]
            return self._reply(
                200 if listed else 404, json.dumps({"object": "list", "data": [listed]} if listed else {"code": 404}).encode()
            )
        is_page = self.path == "/page"
        self._reply(200, PAGE if is_page else sound(), "text/html" if is_page else "audio/wav")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if self.path in ("/hangs_up", "/sips"):
            return getattr(self, "reply_" + self.path.strip("/"))()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((dict(self.headers), body))  # type: ignore[attr-defined]
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        with self.server.gate:  # type: ignore[attr-defined]
            self.server.open += 1  # type: ignore[attr-defined]
            self.server.most_open = max(self.server.open, self.server.most_open)  # type: ignore[attr-defined]
        getattr(self, "reply_" + self.path.strip("/").replace("/", "_"))(body)
        with self.server.gate:  # type: ignore[attr-defined]
            self.server.open -= 1  # type: ignore[attr-defined]

    def reply_ok(self, body: bytes) -> None:
        wanted = self.headers.get("X-Whisper-Response-Format")
        text = json.dumps({"text": "hello", "duration": 2.5}) if wanted == "json" else "Grüße\n"
        self._reply(200, text.encode(), "text/plain")

    def reply_stream(self, body: bytes) -> None:
        assert self.headers.get("X-Whisper-Stream") == "true"
        progress = {"seconds": 1.5, "duration": 2.5}
        lines: list[dict[str, Any]] = [
            {"type": "segment", "start": 0.0, "end": 1.5, "text": " Grüße", "progress": progress},
            {"type": "progress", "progress": {"seconds": 2.5, "duration": 2.5}},
            {"type": "error", "error": json.loads(BUSY)["error"]} if body == b"b" else {"type": "transcript", "text": "Grüße"},
        ]
        self._reply(200, "".join(json.dumps(line) + "\n" for line in lines).encode(), "application/x-ndjson")

    def reply_predictions_whisper(self, body: bytes) -> None:
        """As the native path: progress, segments, and the transcript with the text that was asked for."""
        wanted = self.headers["X-Whisper-Response-Format"]
        rendered = {} if "json" in wanted else {"rendered": f"rendered as {wanted}: Grüße\n"}
        transcript = {"text": "Grüße", "duration": 60.0, "language": "de", "model": "base", **rendered}
        self._lines({"type": "progress", "progress": {"seconds": 0, "duration": None}}, SEGMENT, {"type": "transcript", **transcript})

    def reply_told(self, body: bytes) -> None:
        """A stream whose transcript is what the request's prompt says, in JSON."""
        self._lines({"type": "transcript", **json.loads(self.headers["X-Whisper-Prompt"])})

    def reply_half(self, body: bytes) -> None:
        """A stream that waits in its middle until the test has seen what it shows."""
        self._begin("application/x-ndjson")
        self._chunk({"type": "progress", "progress": {"seconds": 30.0, "duration": 60.0}})
        self.server.released.wait(20)  # type: ignore[attr-defined]
        self._chunk({"type": "transcript", "text": "Grüße", "rendered": "Grüße\n", "duration": 60.0, "model": "base"})
        self.wfile.write(b"0\r\n\r\n")

    def reply_alive(self, body: bytes) -> None:
        """A stream with a sign of life every tenth of a second, for a second."""
        self._begin("application/x-ndjson")
        for tenth in range(10):
            self._chunk({"type": "progress", "progress": {"seconds": tenth, "duration": 10}})
            time.sleep(0.1)
        self._chunk({"type": "transcript", "text": "Grüße", "rendered": "Grüße\n"})
        self.wfile.write(b"0\r\n\r\n")

    def reply_stalls(self, body: bytes) -> None:
        self._begin("application/x-ndjson")
        self._chunk(SEGMENT)
        self.server.released.wait(20)  # type: ignore[attr-defined]

    def reply_breaks(self, body: bytes) -> None:
        self._begin("application/x-ndjson")
        self._chunk(SEGMENT)
        self.reply_reset(body)

    def reply_ends_early(self, body: bytes) -> None:
        self._lines(SEGMENT)

    def reply_v1_audio_transcriptions(self, body: bytes) -> None:
        if b'name="stream"' not in body:
            return self.reply_openai(body)
        events = [{"type": "transcript.text.delta", "delta": "Grüße"}, {"type": "transcript.text.delta", "delta": " an alle"}]
        done = {"type": "transcript.text.done", "text": "Grüße an alle", "warnings": ["the file is truncated"]}
        stream = b":\n\n" + b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in [*events, done])
        return self._reply(200, stream, "text/event-stream")

    def reply_v1_audio_translations(self, body: bytes) -> None:
        self._reply(200, b"greetings\n", "text/plain")

    def reply_warned(self, body: bytes) -> None:
        self._reply(200, b"words\n", "text/plain", {"X-Whisper-Warnings": "the file is truncated", "X-Whisper-Model": "nano"})

    def reply_silent(self, body: bytes) -> None:
        self._reply(200, b"WEBVTT\n\n", "text/vtt")

    def reply_demonstration(self, body: bytes) -> None:
        self._reply(200, json.dumps({"text": "hello", "duration": 2.5, "warnings": ["a demonstration model"]}).encode())

    def reply_full(self, body: bytes) -> None:
        self._reply(413, b"", "text/plain")

    def reply_long(self, body: bytes) -> None:
        error = {"message": "the recording is longer than 60 s, the most this server takes: split it", "code": "too_long"}
        self._reply(413, json.dumps({"error": error}).encode())

    def reply_gone(self, body: bytes) -> None:
        self._reply(405, json.dumps({"code": 405, "type": "MethodNotAllowedException", "message": "refer to API document"}).encode())

    def reply_moved(self, body: bytes) -> None:
        self._reply(301, b"", "text/plain", {"Location": "https://example.org/predictions/whisper"})

    def reply_hangs_up(self) -> None:
        """Close the connection in the middle of the upload."""
        self.rfile.read(100_000)
        self.reply_reset(b"")

    def reply_sips(self) -> None:
        """Take the upload so slowly that it lasts longer than the client's patience, without a long pause."""
        left, pause = int(self.headers["Content-Length"]), 1.5 / 16
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
            time.sleep(pause)
        self.reply_ok(b"")

    def reply_openai(self, body: bytes) -> None:
        self._reply(200, json.dumps({"text": "hello", "usage": {"type": "duration", "seconds": 3}}).encode())

    def reply_busy(self, body: bytes) -> None:
        self._reply(503, BUSY.encode())

    def reply_torchserve(self, body: bytes) -> None:
        self._reply(503, TORCHSERVE.encode())

    def reply_proxy(self, body: bytes) -> None:
        self._reply(502, b"<h1>Bad\n Gateway</h1>", "text/html")

    def reply_bad(self, body: bytes) -> None:
        error = {"message": "unknown language 'xx'", "type": "invalid_request_error", "param": "language", "code": "invalid_value"}
        self._reply(400, json.dumps({"error": error}).encode())

    def reply_late(self, body: bytes) -> None:
        self._reply(200, BUSY.replace('{"error": ', '{"error":').encode(), "text/plain")

    def reply_slow(self, body: bytes) -> None:
        self.server.released.wait(20)  # type: ignore[attr-defined]
        self.reply_ok(body)

    def reply_mixed(self, body: bytes) -> None:
        (self.reply_busy if body == b"b" else self.reply_ok)(body)

    def reply_crowd(self, body: bytes) -> None:
        self.server.crowd.wait(20)  # type: ignore[attr-defined]
        self.reply_ok(body)

    def reply_reset(self, body: bytes) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply_stranger(self, body: bytes) -> None:
        self._reply(200, b'{"status": "Healthy"}')

    def _lines(self, *lines: dict[str, Any]) -> None:
        self._reply(200, "".join(json.dumps(line) + "\n" for line in lines).encode(), "application/x-ndjson")

    def _begin(self, kind: str) -> None:
        """A reply in chunks."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _reply(self, status: int, payload: bytes, kind: str = "application/json", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


SEGMENT = {"type": "segment", "start": 0.0, "end": 30.0, "text": " Grüße", "progress": {"seconds": 30.0, "duration": 60.0}}
PAGE = b"<!doctype html><title>nothing to hear</title><p>words only</p>"


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(bytes(3_200))
    return file.getvalue()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.models: dict[str, dict[str, Any]] = {}
        self.gate, self.open, self.most_open = threading.Lock(), 0, 0
        self.released = threading.Event()
        self.crowd = threading.Barrier(4)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    folder = tmp_path / "talks"
    (folder / "deep").mkdir(parents=True)
    for name, content in {"a.wav": b"a", "b.mp3": b"b", "deep/c.FLAC": b"c", "notes.txt": b"no audio"}.items():
        (folder / name).write_bytes(content)
    return [str(folder / "a.wav"), str(folder / "b.mp3")]


@pytest.fixture
def nowhere() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/ok"


# transcribe.py


def test_prints_the_words(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", server.url("ok")]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("Grüße\n", "")
    headers, body = server.seen[0]
    assert body == b"a"
    assert (headers["Content-Type"], headers["Content-Length"]) == (mimetypes.guess_type("a.wav")[0], "1")


def test_options_become_headers_that_the_core_understands(server: Server, files: list[str]) -> None:
    from whispercore.api.request import parse

    arguments = ["--language", "German", "--prompt", "Zürich\nund 你好", "--task", "translate", "--option", "beam_size=5"]
    assert transcribe.main([files[0], "--url", server.url("ok"), "--format", "verbose_json", *arguments]) == 0
    request = parse({"body": b"a"}, server.seen[0][0])
    assert (request.options.language, request.options.initial_prompt) == ("de", "Zürich und 你好")
    assert (request.options.task, request.options.beam_size, request.reply.response_format) == ("translate", 5, "verbose_json")


def test_saves_each_transcript(server: Server, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "new"
    assert transcribe.main([*files, "--url", server.url("ok"), "--format", "srt", "--output-dir", str(out)]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()} == {"a.srt": "Grüße\n", "b.srt": "Grüße\n"}
    assert capsys.readouterr().out == ""


def test_a_stream_is_printed_as_it_comes(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", server.url("stream"), "--stream"]) == 0
    assert capsys.readouterr() == ("     0.00      1.50  Grüße\n", "")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stream", "after the reply began: too many requests are open"),
        ("busy", "HTTP 503: too many requests are open"),
        ("ok", "does not stream lines of JSON"),
    ],
)
def test_a_stream_that_fails(server: Server, files: list[str], capsys: pytest.CaptureFixture[str], path: str, message: str) -> None:
    assert transcribe.main([files[1], "--url", server.url(path), "--stream"]) == 1
    assert f"{files[1]}: " in (err := capsys.readouterr().err) and message in err


def test_a_stream_is_printed_only(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([files[0], "--stream", "--format", "srt"])
    assert "leave out --format" in capsys.readouterr().err


def test_equal_names_do_not_overwrite_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("talk.wav", "talk.mp3", "other/talk.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    two = [tmp_path / "talk.wav", tmp_path / "talk.mp3"]
    assert [path.name for path in recordings.output_paths(two, tmp_path, "txt")] == ["talk.wav.txt", "talk.mp3.txt"]
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([str(tmp_path / "talk.wav"), str(tmp_path / "other" / "talk.wav"), "--output-dir", str(tmp_path)])
    assert "two recordings would be written to" in capsys.readouterr().err


def test_folders_and_patterns(files: list[str]) -> None:
    folder = Path(files[0]).parent
    assert [path.name for path in recordings.find_files([str(folder)])] == ["a.wav", "b.mp3", "c.FLAC"]
    assert [path.name for path in recordings.find_files([str(folder / "*.mp3"), files[0]])] == ["b.mp3", "a.wav"]
    with pytest.raises(FileNotFoundError, match="no recordings"):
        (folder / "empty").mkdir()
        recordings.find_files([str(folder / "empty")])


@pytest.mark.parametrize("script", [transcribe, bulk_request])
def test_a_missing_file_is_told_before_anything_is_sent(
    script: Any, server: Server, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main([files[0], "gone.wav", "--url", server.url("ok")])
    assert "no such file: gone.wav" in capsys.readouterr().err
    assert not server.seen


@pytest.mark.parametrize(
    ("path", "message", "kind"),
    [
        ("busy", "HTTP 503: too many requests are open", "HTTP 503 overloaded"),
        ("bad", "HTTP 400: unknown language 'xx'", "HTTP 400 invalid_value"),
        ("torchserve", "HTTP 503: no worker is available", "HTTP 503 ServiceUnavailableException"),
        ("proxy", "HTTP 502: <h1>Bad Gateway</h1>", "HTTP 502"),
        ("late", "after the reply began: too many requests are open", "after the reply began overloaded"),
        ("reset", "closed the connection without an answer", "connection lost"),
        ("slow", "no answer within 0.2 s", "timeout"),
    ],
)
def test_failures_by_kind(
    path: str, message: str, kind: str, server: Server, files: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = ["--url", server.url(path), "--timeout", "0.2"]
    assert transcribe.main([files[0], *url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert bulk_request.main([files[0], *url, "--json", str(tmp_path / "run.json")]) == 1
    summary = json.loads((tmp_path / "run.json").read_text())["summary"]
    assert summary["errors"] == {kind: 1}
    assert (summary["failed"], summary["latency"]) == (1, {})


@pytest.mark.parametrize("script", [transcribe, bulk_request])
def test_no_server(script: Any, nowhere: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([files[0], "--url", nowhere]) == 1
    out, err = capsys.readouterr()
    told = " ".join((out + err).split())
    assert f"no server at {nowhere}" in told
    assert "./serve.sh" in told


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://host/x", "http://host:port/", "http://[::1"])
def test_an_address_that_is_none(url: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", url]) == 1
    assert "cannot send to" in capsys.readouterr().err


def test_a_reader_that_has_enough(server: Server, files: list[str]) -> None:
    command = [sys.executable, str(CLIENTS / "transcribe.py"), *files * 2, "--url", server.url("ok")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.close()
    assert "Traceback" not in process.communicate(timeout=30)[1]
    assert process.returncode == 141


def test_one_failure_does_not_stop_the_others(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[1], files[0], "--url", server.url("mixed")]) == 1
    out, err = capsys.readouterr()
    assert out == "Grüße\n"
    assert "HTTP 503" in err


def test_wrong_option(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([files[0], "--option", "beam_size"])
    assert "is not NAME=VALUE" in capsys.readouterr().err


# transcribe.py: where the server is


NATIVE_MODELS, OPENAI_MODELS = "/predictions/whisper/1.0/v1/models", "/v1/models"


@pytest.mark.parametrize(
    ("models", "path"),
    [
        ([NATIVE_MODELS], "predictions/whisper"),
        ([NATIVE_MODELS, OPENAI_MODELS], "predictions/whisper"),
        ([OPENAI_MODELS], "v1/audio/transcriptions"),
        ([], "predictions/whisper"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_the_path_is_found(server: Server, models: list[str], path: str, slash: str) -> None:
    server.models = {model: {"id": "base"} for model in models}
    assert endpoint.locate(server.url("")[:-1] + slash) == server.url(path)
    assert endpoint.locate(server.url("").removeprefix("http://")[:-1] + slash) == server.url(path)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("https://h:1/predictions/whisper/", "https://h:1/predictions/whisper"),
        ("http://h/predictions", "http://h/predictions/whisper"),
        ("h:80/predictions/whisper", "http://h:80/predictions/whisper"),
        ("[::1]:80/v1", "http://[::1]:80/v1/audio/transcriptions"),
        ("https://h/v1/", "https://h/v1/audio/transcriptions"),
        ("http://h/predictions/whisper/1.0/v1", "http://h/predictions/whisper/1.0/v1/audio/transcriptions"),
        ("http://h/v1/audio/transcriptions/", "http://h/v1/audio/transcriptions"),
        ("http://h/v1/audio/translations", "http://h/v1/audio/translations"),
        ("http://h/invocations", "http://h/invocations"),
        ("http://h/asr/?key=1", "http://h/asr/?key=1"),
    ],
)
def test_addresses(given: str, found: str) -> None:
    assert endpoint.locate(given) == found


def test_recordings_go_to_the_path_that_was_found(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    server.models = {NATIVE_MODELS: {"id": "base"}}
    assert transcribe.main([files[0], "--url", server.url("")]) == 0
    assert bulk_request.main([files[0], "--url", server.url("")]) == 1  # this fake one streams only
    assert server.paths == ["/predictions/whisper"] * 2


def test_no_server_at_a_bare_address(nowhere: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for script in (transcribe, bulk_request):
        assert script.main([*files, "--url", nowhere.removesuffix("/ok")]) == 1
        err = capsys.readouterr().err
        assert "no server at" in err and err.count("\n") == 1


def test_what_no_server_gets_is_told_once(nowhere: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([*files, "--url", nowhere]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "no server at" in first and second == "the other 1 were not sent"


def test_a_form_for_openais_path(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from email import message_from_bytes

    arguments = ["--url", server.url("v1"), "--format", "json", "--language", "de", "--option", "temperature=0.2"]
    assert transcribe.main([files[0], *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "hello"
    headers, body = server.seen[0]
    form: Any = message_from_bytes(b"Content-Type: " + headers["Content-Type"].encode() + b"\n\n" + body).get_payload()
    parts = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in form}
    assert parts == {"model": b"whisper-1", "language": b"de", "response_format": b"json", "temperature": b"0.2", "file": b"a"}
    assert form[-1].get_filename() == "a.wav"


def test_openais_stream(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", server.url("v1")]) == 0
    assert capsys.readouterr() == ("Grüße an alle\n", f"{files[0]}: warning: the file is truncated\n")
    assert transcribe.main([files[0], "--url", server.url("v1"), "--stream"]) == 0
    assert capsys.readouterr().out == "Grüße\nan alle\n"


def test_openais_translation_has_a_path_of_its_own(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", server.url("v1"), "--task", "translate"]) == 0
    assert server.paths == ["/v1/audio/translations"]
    assert b"translate" not in server.seen[0][1]
    assert capsys.readouterr().out == "greetings\n"


def test_no_secure_connection(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", server.url("ok").replace("http:", "https:")]) == 1
    assert "no secure connection to https://127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--timeout", "0"], ["--timeout", "inf"], ["--timeout", "soon"], ["--max-bytes", "150MB"]])
def test_numbers_that_are_none(option: list[str], files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([files[0], *option])
    assert "is not a number of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone", "HTTP 405: refer to API document; is --url right? http://HOST:8080 is enough"),
        ("moved", "has moved to https://example.org/predictions/whisper"),
        ("full", "HTTP 413: Request Entity Too Large; the upload is too large"),
        ("long", "split it, or start the server with a larger WHISPER_MAX_AUDIO_SECONDS"),
        ("ends_early", "the reply ended before the transcript was whole"),
        ("breaks", "closed the connection in the middle of the answer: send the recording again"),
    ],
)
def test_failures_say_what_to_do(server: Server, files: list[str], capsys: pytest.CaptureFixture[str], path: str, message: str) -> None:
    assert transcribe.main([files[0], "--url", server.url(path)]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    if path == "full":
        assert all(way in err for way in ("--extract-audio", "WHISPER_MAX_AUDIO_BYTES", "TS_MAX_REQUEST_SIZE"))


# transcribe.py: how far it is


@pytest.mark.parametrize("wanted", ["text", "srt", "vtt", "tsv"])
def test_text_is_as_the_server_wrote_it(server: Server, files: list[str], capsys: pytest.CaptureFixture[str], wanted: str) -> None:
    assert transcribe.main([files[0], "--url", server.url("predictions/whisper"), "--format", wanted]) == 0
    assert capsys.readouterr() == (f"rendered as {wanted}: Grüße\n", "")
    assert server.seen[0][0]["X-Whisper-Stream"] == "true"


@pytest.mark.parametrize("wanted", ["json", "verbose_json"])
def test_json_is_the_transcript_without_the_stream_around_it(
    server: Server, files: list[str], capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    assert transcribe.main([files[0], "--url", server.url("predictions/whisper"), "--format", wanted]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "Grüße", "duration": 60.0, "language": "de", "model": "base"}


def test_a_bar_on_a_terminal(server: Server, files: list[str]) -> None:
    process, terminal = on_a_terminal(*files, "--url", server.url("half"))
    try:
        said = read_until(terminal, " left")
        assert "file 1 of 2: a.wav" in said and "0:30 of 1:00" in said and "x real time" in said
        server.released.set()
        said = read_until(terminal, "2 of 2 recordings")
        assert f"{files[0]}: 1:00 of sound in 0:0" in said and "model base" in said
        out, _ = process.communicate(timeout=30)
    finally:
        os.close(terminal)
        process.kill()
    assert (process.returncode, out.decode()) == (0, "Grüße\nGrüße\n")


@pytest.mark.parametrize("option", ["--no-progress", "--quiet"])
def test_no_bar_for_those_who_want_none(server: Server, files: list[str], option: str) -> None:
    process, terminal = on_a_terminal(files[0], "--url", server.url("predictions/whisper"), option)
    out, _ = process.communicate(timeout=30)
    with pytest.raises(OSError, match="Input/output error"):  # the terminal is closed, and nothing was written to it
        os.read(terminal, 65536)
    os.close(terminal)
    assert (process.returncode, out.decode()) == (0, "rendered as text: Grüße\n")


def test_a_line_per_file_elsewhere(server: Server, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--url", server.url("predictions/whisper")]
    assert transcribe.main([*files, *url]) == 0
    assert capsys.readouterr().err == f"==> {files[0]}\n==> {files[1]}\n"
    assert transcribe.main([*files, *url, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert transcribe.main([files[0], *url, "--verbose"]) == 0
    assert "language de, model base" in capsys.readouterr().err


def test_the_time_out_counts_from_the_last_sign_of_life(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", server.url("alive"), "--timeout", "0.8"]) == 0
    assert capsys.readouterr().out == "Grüße\n"
    assert transcribe.main([files[0], "--url", server.url("stalls"), "--timeout", "0.3"]) == 1
    assert "no sign of life for 0.3 s" in capsys.readouterr().err


def test_a_slow_upload_is_a_sign_of_life(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "long.wav").write_bytes(bytes(16 << 20))
    assert transcribe.main([str(tmp_path / "long.wav"), "--url", server.url("sips"), "--timeout", "1.2"]) == 0
    assert capsys.readouterr().out == "Grüße\n"


@pytest.mark.parametrize("path", ["breaks", "stalls"])
def test_where_to_go_on(server: Server, files: list[str], capsys: pytest.CaptureFixture[str], path: str) -> None:
    assert transcribe.main([files[0], "--url", server.url(path), "--stream", "--timeout", "0.5"]) == 1
    out, err = capsys.readouterr()
    assert out == "     0.00     30.00  Grüße\n"
    assert "go on from here with --option clip_timestamps=30.00" in err


def test_what_is_there_can_be_skipped(server: Server, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*files, "--output-dir", str(tmp_path / "out")]
    assert transcribe.main([*arguments, "--url", server.url("mixed")]) == 1
    assert "1 of 2 failed: the same command with --skip-existing sends only those" in capsys.readouterr().err
    server.seen.clear()
    assert transcribe.main([*arguments, "--url", server.url("ok"), "--skip-existing"]) == 0
    assert [body for _, body in server.seen] == [b"b"]
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([files[0], "--skip-existing"])


def test_a_transcript_that_cannot_be_saved(server: Server, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    assert transcribe.main([files[0], "--url", server.url("ok"), "--output-dir", str(tmp_path / "out")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.txt"]


# transcribe.py: what the server remarks


def remarks(server: Server, files: list[str], capsys: pytest.CaptureFixture[str], **transcript: Any) -> str:
    """What is said on standard error of such a transcript of each file."""
    assert transcribe.main([*files, "--url", server.url("told"), "--prompt", json.dumps(transcript)]) == 0
    return capsys.readouterr().err


def test_each_warning_is_told_once(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    err = remarks(server, files, capsys, text="hello", rendered="hello", warnings=["a demonstration model", "cut short"])
    assert err.count(": warning: a demonstration model") == err.count(": warning: cut short") == 1
    assert "the same warning for 1 more (b.mp3): cut short" in err
    assert remarks(server, files[:1], capsys, text="hello", rendered="hello") == ""


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({}, "no words: no speech was found"),
        ({"warnings": ["no speech was found in the recording"]}, "no words: no speech was found"),
        ({"warnings": ["2 passages were left out, by whom?"]}, "no words: 2 passages were left out, by whom?"),
        (
            {"dropped": [{"start": 0, "end": 27, "text": " Guten  Morgen", "reason": "no_speech"}]},
            "1 passage was left out as no speech: “Guten Morgen”; to keep what was left out: --option no_speech_threshold=none",
        ),
        (
            {"dropped": [{"start": 0, "end": 9, "text": "Thanks", "reason": "hallucination"}] * 2},
            "2 passages were left out as hallucination: “Thanks Thanks”; to keep what was left out: --option hallucination_",
        ),
    ],
)
def test_an_empty_transcript_says_why(
    server: Server, files: list[str], capsys: pytest.CaptureFixture[str], reply: dict[str, Any], said: str
) -> None:
    err = remarks(server, files[:1], capsys, text="", rendered="\n", **reply)
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize(("wanted", "rendered"), [("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n\n"), ("tsv", "start\tend\ttext\n")])
def test_every_form_may_be_empty(server: Server, files: list[str], capsys: pytest.CaptureFixture[str], wanted: str, rendered: str) -> None:
    assert transcript.is_empty({"rendered": rendered})
    assert not transcript.is_empty({"rendered": rendered + "a word"})
    assert transcribe.main([files[0], "--url", server.url("silent"), "--format", wanted]) == 0
    assert "no speech was found" in capsys.readouterr().err


def test_warnings_beside_text(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert transcribe.main([files[0], "--url", server.url("warned"), "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert out == "words\n"
    assert "warning: the file is truncated" in err and "model nano" in err


# transcribe.py: files that are too large


def film(path: Path, seconds: int = 4, codec: str = "aac") -> Path:
    """A video of noise with a sound track."""
    random = np.random.default_rng(7)
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("mpeg4", rate=10), container.add_stream(codec, rate=44_100, layout="stereo")
        pictures.width = pictures.height = 160
        pictures.bit_rate = 4_000_000
        for _ in range(seconds * 10):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 255, (160, 160, 3), np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        for number in range(seconds * 10):
            tone = np.sin(np.arange(number * 4410, (number + 1) * 4410) * 0.05).astype(np.float32) * 0.3
            block = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            block.sample_rate = 44_100
            container.mux(sound.encode(block))
        for stream in (pictures, sound):
            container.mux(stream.encode(None))
    return path


def heard(sent: bytes) -> tuple[str, int, float]:
    """Codec, number of channels and seconds of an upload that has no pictures."""
    with av.open(io.BytesIO(sent)) as container:
        assert not container.streams.video
        [stream] = container.streams.audio
        seconds = sum((frame.samples / frame.sample_rate for frame in container.decode(stream)), 0.0)
        return stream.codec_context.codec.canonical_name, stream.codec_context.channels, seconds


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith("whisper-")]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "aac"), ("mkv", "libmp3lame"), ("mov", "aac"), ("ts", "aac")])
def test_of_a_film_that_is_too_large_the_sound_is_sent_as_it_is(
    server: Server, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str], suffix: str, codec: str
) -> None:
    meeting = film(tmp_path / f"meeting.{suffix}", codec=codec)
    arguments = ["--url", server.url("predictions/whisper"), "--max-bytes", str(meeting.stat().st_size - 1)]
    assert transcribe.main([str(meeting), *arguments]) == 0
    (_, sent), said = server.seen[0], capsys.readouterr().err
    assert len(sent) < meeting.stat().st_size / 2
    name, channels, seconds = heard(sent)
    assert (name, channels) == ("mp3" if "mp3" in codec else "aac", 2) and seconds == pytest.approx(4, abs=0.1)
    assert f"{meeting}: sending its sound track only ({name}, copied" in said and "too large for the server" in said
    assert not left_behind(scratch)


@pytest.mark.parametrize(("share", "codec"), [(0.5, "flac"), (0.06, "opus")])
def test_of_a_large_wav_flac_or_opus_is_sent(
    server: Server, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str], share: float, codec: str
) -> None:
    lecture, noise = tmp_path / "lecture.wav", np.random.default_rng(3).integers(-9000, 9000, (441_000, 2), np.int16)
    with wave.open(str(lecture), "wb") as writer:
        writer.setparams((2, 2, 44_100, 0, "NONE", ""))
        writer.writeframes(noise.tobytes())
    limit = int(lecture.stat().st_size * share)
    assert transcribe.main([str(lecture), "--url", server.url("predictions/whisper"), "--max-bytes", str(limit)]) == 0
    name, channels, seconds = heard(server.seen[0][1])
    assert (name, channels) == (codec, 2) and seconds == pytest.approx(10, abs=0.1) and len(server.seen[0][1]) <= limit
    assert f"encoded as {codec}, 16 kHz" in capsys.readouterr().err and not left_behind(scratch)


def test_a_late_start_and_gaps_are_kept(tmp_path: Path, scratch: Path) -> None:
    """The recording's own clock: sound from 5 s on, and after a second of it a gap of three."""
    late = tmp_path / "late.mkv"
    with av.open(str(late), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        for second in (5, 9):
            frame = av.AudioFrame.from_ndarray(np.full((1, 16_000), 500, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, second * 16_000, Fraction(1, 16_000)
            for packet in stream.encode(frame):
                container.mux(packet)
        container.mux(stream.encode(None))
    tool = soundtrack._tool()
    for form in ("copy", "opus"):
        tool.write(late, tmp_path / f"{form}.mka", form, False, 10**9, lambda seconds, duration: None)
        with av.open(str(tmp_path / f"{form}.mka")) as container:
            times = [float(packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.pts is not None]
        assert times[0] == pytest.approx(5, abs=0.1) and times[-1] == pytest.approx(9.9, abs=0.3)
        assert not [time for time in times if 6.2 < time < 8.8], form


def test_every_track_with_its_language_is_kept(tmp_path: Path) -> None:
    two = tmp_path / "two.mkv"
    with av.open(str(two), "w") as container:
        for language, layout in (("deu", "mono"), ("eng", "stereo")):
            container.add_stream("ac3", rate=48_000, layout=layout).metadata["language"] = language
        for stream in container.streams.audio:
            sound = np.zeros((stream.codec_context.channels, 48_000), np.float32)
            frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=stream.codec_context.layout.name)
            frame.sample_rate = 48_000
            container.mux([*stream.encode(frame), *stream.encode(None)])
    for form in ("copy", "flac", "opus"):
        soundtrack._tool().write(two, tmp_path / "out.mka", form, False, 10**9, lambda seconds, duration: None)
        with av.open(str(tmp_path / "out.mka")) as container:
            tracks = [(stream.metadata["language"], stream.codec_context.channels) for stream in container.streams.audio]
        assert tracks == [("deu", 1), ("eng", 2)], form


def test_the_sound_track_on_demand(server: Server, tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--url", server.url("predictions/whisper"), "--extract-audio"]
    assert transcribe.main([str(film(tmp_path / "talk.mp4")), *url]) == 0
    assert heard(server.seen[0][1])[0] == "aac"
    assert transcribe.main([files[1], *url]) == 0, "what has no pictures goes as it is"
    assert server.seen[1][1] == b"b"


@pytest.mark.parametrize("script", [transcribe, bulk_request])
def test_a_file_that_is_too_large_is_told_before_it_is_sent(
    script: Any, server: Server, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[0]).write_bytes(b"no sound, only letters")
    assert script.main([files[0], "--url", server.url("ok"), "--max-bytes", "10"]) == 1
    out, err = capsys.readouterr()
    told = " ".join((out + err).split())
    assert "the file has 22 bytes, the server takes at most 10" in told
    assert all(way in told for way in ("--extract-audio", "WHISPER_MAX_AUDIO_BYTES", "TS_MAX_REQUEST_SIZE", "--max-bytes"))
    assert not server.seen


def test_a_film_may_be_left_as_it_is(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(film(tmp_path / "talk.mp4")), "--url", server.url("ok"), "--max-bytes", "1000", "--no-extract"]
    assert transcribe.main(arguments) == 1
    assert "the server takes at most 1,000" in capsys.readouterr().err and not server.seen


def test_a_server_may_tell_its_limit(server: Server, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(endpoint, "DEFAULT_MAX_BYTES", 10)
    Path(files[0]).write_bytes(bytes(100))
    url = ["--url", server.url("predictions/whisper")]
    server.models = {NATIVE_MODELS: {"id": "base", "max_audio_bytes": 200}}
    assert transcribe.main([files[0], *url]) == 0
    server.models = {NATIVE_MODELS: {"id": "base", "max_audio_bytes": 50}}
    assert transcribe.main([files[0], *url]) == 1
    assert "the server takes at most 50" in capsys.readouterr().err
    assert transcribe.main([files[0], *url, "--max-bytes", "100"]) == 0


def test_an_upload_that_is_cut_off(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "long.wav").write_bytes(bytes(64 << 20))
    for script in (transcribe, bulk_request):
        assert script.main([str(tmp_path / "long.wav"), "--url", server.url("hangs_up")]) == 1
        told = " ".join("".join(capsys.readouterr()).split())
        assert "of 67.1 MB: the file is probably too large" in told and "TS_MAX_REQUEST_SIZE" in told


def test_without_any_tool(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for more in (["--max-bytes", "1000"], ["--extract-audio"]):
        assert transcribe.main([str(film(tmp_path / "talk.mp4")), "--url", server.url("ok"), *more]) == 1
        assert "without PyAV or ffmpeg: run ./serve.sh --setup once, or install ffmpeg" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed on this machine")
def test_with_ffmpeg_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    meeting = film(tmp_path / "-odd name.mp4")
    for limit, codec in ((10**9, "aac"), (40_000, "opus")):
        with soundtrack.extracted(meeting, limit, lambda seconds, duration: None) as track:
            assert heard(track.path.read_bytes())[0] == track.codec == codec
    with (
        pytest.raises(soundtrack.ExtractionFailed, match="larger than 1,000 bytes, even as Opus"),
        soundtrack.extracted(meeting, 1000, lambda seconds, duration: None),
    ):
        pass
    (tmp_path / "notes.mp3").write_text("words only")
    with pytest.raises(soundtrack.ExtractionFailed), soundtrack.extracted(tmp_path / "notes.mp3", 10, lambda seconds, duration: None):
        pass


def test_empty_files_and_pipes(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.wav").touch()
    assert transcribe.main([str(tmp_path / "empty.wav"), "--url", server.url("ok")]) == 1
    assert "the file is empty: 0 bytes" in capsys.readouterr().err and not server.seen
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"from a pipe",))
    writer.start()
    assert transcribe.main([str(tmp_path / "pipe"), "--url", server.url("ok")]) == 0
    writer.join()
    assert server.seen[0][1] == b"from a pipe" and server.seen[0][0]["Content-Length"] == "11"


# bulk_request.py


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200), st.sampled_from(bulk_request.PERCENTILES))
def test_percentiles_are_numpys(values: list[float], percent: int) -> None:
    assert bulk_request.percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)


def test_summary() -> None:
    outcomes = [
        bulk_request.Outcome("a", 1.0, 2.0, 10.0),
        bulk_request.Outcome("b", 1.5, 3.5, 20.0),
        bulk_request.Outcome("c", 2.0, 0.5, 0.0, "timeout", "no answer"),
    ]
    summary = bulk_request.summarize(outcomes)
    assert (summary.requests, summary.failed, summary.wall, summary.audio) == (3, 1, 4.0, 30.0)
    assert (summary.requests_per_second, summary.audio_per_second) == (0.5, 7.5)
    assert summary.errors == {"timeout": 1}
    assert summary.latency["p50"] == summary.latency["mean"] == 2.75
    assert bulk_request.summarize([]).wall == 0.0


def test_load_test(server: Server, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page = tmp_path / "run.json", tmp_path / "latency.html"
    outputs = ["--json", str(run), "--plot", str(page)]
    status = bulk_request.main([*files, "--url", server.url("mixed"), "--repeat", "5", "--concurrency", "3", "--warmup", "2", *outputs])
    assert status == 1  # every b.mp3 is refused
    assert len(server.seen) == 2 + 10
    result = json.loads(run.read_text())
    assert (result["summary"]["requests"], result["summary"]["failed"], result["summary"]["audio"]) == (10, 5, 12.5)
    assert result["summary"]["errors"] == {"HTTP 503 overloaded": 5}
    assert len(result["outcomes"]) == 10
    assert result["run"]["concurrency"] == 3
    out = capsys.readouterr().out
    assert "5 x HTTP 503 overloaded" in out
    assert "latency p99" in out
    svg = ElementTree.fromstring(page.read_text()[(start := page.read_text().index("<svg")) : page.read_text().index("</svg>", start) + 6])
    circles = [circle.get("class") for circle in svg.iter("circle")]
    assert (circles.count("answered"), circles.count("failed")) == (5, 5)
    assert "http" not in page.read_text().replace("HTTP", "")


def test_concurrency_is_what_was_asked_for(server: Server, files: list[str]) -> None:
    """The server answers only when four requests are open: fewer would hang, and more are never seen."""
    assert bulk_request.main([files[0], "--url", server.url("crowd"), "--repeat", "8", "--concurrency", "4", "--timeout", "20"]) == 0
    assert server.most_open == 4


def test_duration_from_openais_usage(server: Server, files: list[str], tmp_path: Path) -> None:
    assert bulk_request.main([files[0], "--url", server.url("openai"), "--json", str(tmp_path / "run.json")]) == 0
    assert json.loads((tmp_path / "run.json").read_text())["summary"]["audio"] == 3.0


def test_warnings_are_counted(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bulk_request.main([*files, "--url", server.url("demonstration"), "--repeat", "2"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "warning in 4 of 4 replies: a demonstration model" in told and told.count("a demonstration model") == 1
    for headers, _ in server.seen:  # each is transcribed by itself, and answered in one piece
        assert headers["Cache-Control"] == "no-cache" and "X-Whisper-Stream" not in headers


def test_an_answer_that_is_no_transcript_is_a_failure(server: Server, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bulk_request.main([files[0], "--url", server.url("stranger")]) == 1
    assert "not a transcript" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--concurrency", "0"], "is not a whole number above 0"),
        (["--plot", "latency.pdf"], "must end in .html or .png"),
        (["--json", "no/such/folder/run.json"], "does not exist"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bulk_request.main([files[0], *arguments])
    assert message in capsys.readouterr().err


def test_png(server: Server, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With matplotlib a picture; without it a message, before a single request is sent."""
    picture = tmp_path / "latency.png"
    arguments = [files[0], "--url", server.url("ok"), "--plot", str(picture)]
    if importlib.util.find_spec("matplotlib"):
        assert bulk_request.main(arguments) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
    else:
        with pytest.raises(SystemExit, match="2"):
            bulk_request.main(arguments)
        assert "pip install matplotlib" in capsys.readouterr().err
        assert not server.seen


def test_ctrl_c_tells_what_was_measured(server: Server, files: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    command = [sys.executable, str(CLIENTS / "bulk_request.py"), files[0], "--url", server.url("slow"), "--json", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not server.seen and time.monotonic() < deadline:
        server.released.wait(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "0 requests" in out
    assert json.loads(run.read_text())["interrupted"] is True


# download_audio.py


def test_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download_audio.main([server.url("talk.wav"), "--output-dir", str(tmp_path)]) == 0
    saved = Path(capsys.readouterr().out.strip())
    assert saved.parent == tmp_path
    assert saved.suffix == ".wav"
    assert saved.read_bytes() == sound()


def test_download_failures_take_one_line(server: Server, nowhere: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download_audio.main([server.url("page"), nowhere, "nonsense", "--output-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    page, refused, nonsense = err.splitlines()
    assert f"no audio found at {server.url('page')}" in page
    assert nowhere in refused
    assert "refused" in refused
    assert "no audio found at nonsense" in nonsense


def test_without_yt_dlp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    assert download_audio.main(["http://example.org"]) == 1
    assert "pip install yt-dlp" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["transcribe", "bulk_request", "download_audio"])
def test_help(script: str) -> None:
    shown = subprocess.run([sys.executable, str(CLIENTS / f"{script}.py"), "--help"], capture_output=True, text=True, check=True)
    assert "usage:" in shown.stdout
