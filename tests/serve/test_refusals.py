"""Errors have OpenAI's JSON and the right status, and the next request is answered."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import requests
import soundfile

from tests.serve.conftest import MAX_AUDIO_SECONDS
from tests.serve.recordings import SAMPLES, TRANSCRIPTS, silent_film, words, write_wav
from tests.serve.server import FRONTS, Server

TIMER = (SAMPLES / "timer.flac").read_bytes()
pytestmark = FRONTS


def refused(reply: requests.Response, status: int) -> dict[str, Any]:
    """The error of a reply, which has this status and OpenAI's four keys."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.fixture(autouse=True)
def still_serves(server: Server) -> Any:
    yield
    reply = requests.post(server.url, data=TIMER, timeout=120)
    assert words(reply.json()["text"]) == words(TRANSCRIPTS["timer.flac"])


@pytest.mark.parametrize(
    ("arguments", "status", "param", "code"),
    [
        pytest.param({"data": b""}, 400, "file", None, id="empty body"),
        pytest.param({"files": {"file": ("empty.wav", b"")}}, 400, "file", "empty_file", id="empty file"),
        pytest.param({"data": b"these are words, not sounds " * 100}, 415, None, "unsupported_audio", id="not audio"),
        pytest.param({"data": os.urandom(50_000)}, 415, None, "unsupported_audio", id="noise as bytes"),
        pytest.param({"files": {"file": TIMER}, "data": {"beam_sise": "5"}}, 400, "beam_sise", "unknown_parameter", id="unknown field"),
        pytest.param({"files": {"file": TIMER}, "data": {"temperature": "7"}}, 400, "temperature", "invalid_value", id="bad value"),
        pytest.param(
            {"data": TIMER, "headers": {"X-Whisper-Language": "xx"}}, 400, "X-Whisper-Language", "invalid_value", id="unknown language"
        ),
        pytest.param({"files": {"audio_file": TIMER}}, 400, "audio_file", "unknown_parameter", id="another server's file field"),
        pytest.param({"files": {"file[]": TIMER}}, 400, "file[]", "unknown_parameter", id="a list of files"),
        pytest.param({"files": {"file": TIMER}, "data": {"diarize": "true"}}, 400, "diarize", "unsupported_parameter", id="diarize"),
        pytest.param({"json": {"audio": "?"}}, 400, "audio", "invalid_base64", id="not base64"),
        pytest.param({"json": [1, 2]}, 400, None, "invalid_json", id="no JSON object"),
        pytest.param({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400, None, "invalid_json", id="broken JSON"),
    ],
)
def test_refusal(server: Server, arguments: dict[str, Any], status: int, param: str | None, code: str | None) -> None:
    error = refused(requests.post(server.url, timeout=120, **arguments), status)
    assert code in (None, error["code"])
    assert param in (None, error["param"])


def test_no_audio_stream(server: Server, tmp_path: Path) -> None:
    film = silent_film(tmp_path / "film.mp4").read_bytes()
    assert "audio" in refused(requests.post(server.url, data=film, timeout=120), 415)["message"]


def test_zero_seconds(server: Server, tmp_path: Path) -> None:
    nothing = write_wav(tmp_path / "nothing.wav", seconds=0).read_bytes()
    refused(requests.post(server.url, data=nothing, timeout=120), 422)


def test_too_long(server: Server, tmp_path: Path) -> None:
    long = tmp_path / "long.flac"
    with soundfile.SoundFile(long, "w", samplerate=8000, channels=1) as file:
        for _ in range(MAX_AUDIO_SECONDS // 60 + 1):
            file.write([0.0] * 8000 * 60)
    assert refused(requests.post(server.url, data=long.read_bytes(), timeout=300), 413)["code"] == "too_long"


def test_too_large(server: Server) -> None:
    """The worker refuses one byte more than max_audio_bytes."""
    body = bytes(150 * 1024 * 1024 + 1)
    assert refused(requests.post(server.url, data=body, timeout=300), 413)["code"] == "too_large"


def test_an_unknown_path(server: Server) -> None:
    refused(requests.post(f"{server.url}/1.0/v1/audio/poems", data=TIMER, timeout=120), 404)
