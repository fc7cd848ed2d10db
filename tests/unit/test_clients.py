"""The client scripts against a small HTTP server that answers as ours does, and as a broken one does."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

CLIENTS = Path(__file__).resolve().parents[2] / "clients"
sys.path.insert(0, str(CLIENTS))

import bulk_request  # noqa: E402
import download_audio  # noqa: E402
import transcribe  # noqa: E402

BUSY = json.dumps({"error": {"message": "too many requests are open", "type": "server_error", "param": None, "code": "overloaded"}})
TORCHSERVE = json.dumps({"code": 503, "type": "ServiceUnavailableException", "message": "no worker is available"})


class Handler(BaseHTTPRequestHandler):
    """Answers by the path: /ok, /busy, /slow …; keeps what arrived in `server.seen`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        is_page = self.path == "/page"
        self._reply(200, PAGE if is_page else sound(), "text/html" if is_page else "audio/wav")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((dict(self.headers), body))  # type: ignore[attr-defined]
        with self.server.gate:  # type: ignore[attr-defined]
            self.server.open += 1  # type: ignore[attr-defined]
            self.server.most_open = max(self.server.open, self.server.most_open)  # type: ignore[attr-defined]
        getattr(self, "reply_" + self.path.strip("/"))(body)
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

    def _reply(self, status: int, payload: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


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
    assert (headers["Content-Type"], headers["Content-Length"]) == ("audio/x-wav", "1")


def test_options_become_headers_that_the_core_understands(server: Server, files: list[str]) -> None:
    from whispercore.wire import parse

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
    assert [path.name for path in transcribe._outputs(two, tmp_path, "txt")] == ["talk.wav.txt", "talk.mp3.txt"]
    with pytest.raises(SystemExit, match="2"):
        transcribe.main([str(tmp_path / "talk.wav"), str(tmp_path / "other" / "talk.wav"), "--output-dir", str(tmp_path)])
    assert "two recordings would be written to" in capsys.readouterr().err


def test_folders_and_patterns(files: list[str]) -> None:
    folder = Path(files[0]).parent
    assert [path.name for path in transcribe.find_files([str(folder)])] == ["a.wav", "b.mp3", "c.FLAC"]
    assert [path.name for path in transcribe.find_files([str(folder / "*.mp3"), files[0]])] == ["b.mp3", "a.wav"]
    with pytest.raises(FileNotFoundError, match="no recordings"):
        (folder / "empty").mkdir()
        transcribe.find_files([str(folder / "empty")])


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
