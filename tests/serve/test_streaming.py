"""Streamed replies: NDJSON on the native path, server-sent events on OpenAI's path."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, repeat, words
from tests.serve.server import FRONTS, ROOT, Server, wait_for

TIMER = SAMPLES / "timer.flac"
HOME = words(TRANSCRIPTS["home.flac"])
REPEATS = 6
pytestmark = FRONTS


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nearly six minutes of speech."""
    return repeat("home.flac", REPEATS, tmp_path_factory.mktemp("long") / "long.flac")


def lines(reply: requests.Response) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        yield json.loads(line)


def stream(server: Server, audio: bytes) -> requests.Response:
    return requests.post(server.url, files={"file": audio}, data={"stream": "true"}, stream=True, timeout=300)


def first_segment(reply: requests.Response) -> str:
    text: str = next(line["text"] for line in lines(reply) if line["type"] == "segment")
    return text


def is_cancelled(server: Server) -> bool:
    """TorchServe reports closed connections to the worker with the next request."""
    requests.post(server.url, data=TIMER.read_bytes(), timeout=120)
    return server.metric("whisper_open_requests") == 0


@pytest.mark.parametrize("strategy", ["chunked", "sequential"])
def test_lines_of_json(server: Server, long: Path, strategy: str) -> None:
    # Conditioning on previous text misleads the small bundled model.
    data = {"stream": "true", "strategy": strategy, "condition_on_previous_text": "false", "language": "en"}
    with long.open("rb") as file, requests.post(server.url, files={"file": file}, data=data, stream=True, timeout=300) as reply:
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/x-ndjson")
        received: list[dict[str, Any]] = []
        for line in lines(reply):
            if line["type"] == "segment" and not any(earlier["type"] == "segment" for earlier in received):
                assert server.metric("whisper_open_requests") == 1, "the first segment came with the last"
            received.append(line)
    *streamed, whole = received
    segments = [line for line in streamed if line["type"] == "segment"]
    assert (whole["type"], {line["type"] for line in streamed}) == ("transcript", {"segment", "progress"})
    assert "".join(segment["text"] for segment in segments).strip() == whole["text"]
    assert len(words(whole["text"])) == pytest.approx(REPEATS * len(HOME), rel=0.1)
    seconds = [line["progress"]["seconds"] for line in streamed]
    assert seconds == sorted(seconds) and len(set(seconds)) > 2
    assert streamed[-1]["progress"] == {"seconds": whole["duration"], "duration": whole["duration"]}


@pytest.mark.parametrize(("path", "sign"), [("", b'{"type":"progress"'), ("/1.0/v1/audio/transcriptions", b":")])
def test_progress_comes_before_the_first_words_and_continues(server: Server, long: Path, path: str, sign: bytes) -> None:
    # The sequential strategy reads the whole recording before it decodes the first window.
    data = {"stream": "true", "strategy": "sequential", "language": "en", "condition_on_previous_text": "false"}
    with requests.post(server.url + path, files={"file": long.read_bytes()}, data=data, stream=True, timeout=300) as reply:
        began, gaps = time.monotonic(), []
        for line in filter(None, reply.iter_lines()):
            now = time.monotonic()
            gaps.append(now - began)
            began = now
            if len(gaps) == 1:
                assert line.startswith(sign)
    assert max(gaps) < 10, "a client with a read timeout of 10 s would have given up"


def test_events(server: Server) -> None:
    url = f"{server.url}/1.0/v1/audio/transcriptions"
    reply = requests.post(url, files={"file": TIMER.read_bytes()}, data={"stream": "true", "model": "whisper-1"}, timeout=120)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream")
    *deltas, done = [json.loads(event.removeprefix("data: ")) for event in reply.text.split("\n\n") if event and not event.startswith(":")]
    assert {delta["type"] for delta in deltas} == {"transcript.text.delta"}
    assert words(done["text"]) == words(TRANSCRIPTS["timer.flac"])


@pytest.mark.parametrize("path", ["", "/1.0/v1/audio/transcriptions"])
@pytest.mark.parametrize(("audio", "status"), [(b"words, not sounds " * 100, 415), (bytes(2 << 20), 415), (b"", 400)])
def test_errors_before_the_first_chunk_keep_their_status(server: Server, path: str, audio: bytes, status: int) -> None:
    reply = requests.post(server.url + path, files={"file": ("a", audio)}, data={"stream": "true"}, timeout=120)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    assert reply.json()["error"]["message"]


def test_closing_a_stream_cancels_the_work_unless_another_request_shares_it(server: Server, tmp_path: Path) -> None:
    an_hour, shared = repeat("home.flac", 62, tmp_path / "longer.flac").read_bytes(), server.metric("whisper_shared_total")
    windows = server.metric("whisper_windows_total")
    with contextlib.ExitStack() as open_streams:
        first, second = (open_streams.enter_context(stream(server, an_hour)) for _ in range(2))
        assert server.metric("whisper_shared_total") == shared + 1
        assert first_segment(first) == first_segment(second), "the second request did not get the earlier segments"
        first.close()
        before = server.metric("whisper_windows_total")
        wait_for(lambda: server.metric("whisper_windows_total") > before, 60, "the work continues for the second")
    wait_for(lambda: is_cancelled(server), 60, "both are cancelled")
    assert server.metric("whisper_windows_total") - windows < 60 * 60 / 30, "it was transcribed to its end"


def test_transcribe_prints_segments_as_they_come(server: Server) -> None:
    command = [sys.executable, str(ROOT / "clients" / "transcribe.py"), str(TIMER), "--stream", "--url", server.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    start, end, text = line.split(maxsplit=2)
    assert 0 <= float(start) < float(end) <= 3 and words(text) == words(TRANSCRIPTS["timer.flac"])
