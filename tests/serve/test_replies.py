"""Every way to send a recording, every form of the answer."""

from __future__ import annotations

import base64
import http.client
from typing import Any

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, assert_understood, words
from tests.serve.server import Server

TIMER = (SAMPLES / "timer.flac").read_bytes()
SAID = words(TRANSCRIPTS["timer.flac"])


def post(url: str, **arguments: Any) -> requests.Response:
    return requests.post(url, timeout=120, **arguments)


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_samples_are_understood(server: Server, name: str) -> None:
    reply = post(server.url, data=(SAMPLES / name).read_bytes())
    assert reply.status_code == 200
    assert_understood(reply.json()["text"], name)


def test_the_native_json(server: Server) -> None:
    reply = post(server.url, data=TIMER)
    content = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert content["language"] == "en"
    assert content["duration"] == pytest.approx(2.9, abs=0.1)
    [segment] = content["segments"]
    assert words(segment["text"]) == SAID
    assert 0 <= segment["start"] < segment["end"] <= content["duration"]


@pytest.mark.parametrize("field", ["file", "audio", "data"])
def test_multipart(server: Server, field: str) -> None:
    reply = post(server.url, files={field: ("timer.flac", TIMER)}, data={"language": "en", "response_format": "text"})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert words(reply.text) == SAID


def test_json_with_base64(server: Server) -> None:
    reply = post(server.url, json={"audio": base64.b64encode(TIMER).decode(), "language": "English", "vad_filter": False})
    assert words(reply.json()["text"]) == SAID


def test_options_of_a_raw_body_are_headers(server: Server) -> None:
    headers = {"X-Whisper-Response-Format": "srt", "X-Whisper-Beam-Size": "2", "Content-Type": "audio/flac"}
    reply = post(server.url, data=TIMER, headers=headers)
    assert reply.headers["content-type"].startswith("application/x-subrip")
    number, times, text = reply.text.strip().splitlines()
    assert (number, " --> " in times, words(text)) == ("1", True, SAID)


@pytest.mark.parametrize(
    ("accept", "content_type", "begins"),
    [
        ("text/plain", "text/plain", ""),
        ("text/vtt", "text/vtt", "WEBVTT"),
        ("text/vtt;q=0.1, application/json", "application/json", "{"),
        ("*/*", "application/json", "{"),
    ],
)
def test_accept(server: Server, accept: str, content_type: str, begins: str) -> None:
    reply = post(server.url, data=TIMER, headers={"Accept": accept})
    assert reply.headers["content-type"].startswith(content_type)
    assert reply.text.startswith(begins)
    assert set(SAID) <= set(words(reply.text))


def test_put_as_curl_does(server: Server) -> None:
    assert words(requests.put(server.url, data=TIMER, timeout=120).json()["text"]) == SAID


def test_the_openai_paths(server: Server) -> None:
    base = f"{server.url}/1.0/v1"
    reply = post(
        f"{base}/audio/transcriptions",
        files={"file": ("timer.flac", TIMER)},
        data={"model": "whisper-1", "response_format": "verbose_json"},
    )
    content = reply.json()
    assert words(content["text"]) == SAID
    assert (content["task"], content["language"], content["usage"]) == ("transcribe", "english", {"type": "duration", "seconds": 3})
    assert requests.get(f"{base}/models", timeout=60).json()["data"][0]["object"] == "model"


def test_invocations_take_options_from_the_query(server: Server) -> None:
    reply = post(f"http://127.0.0.1:{server.port}/invocations?response_format=text", data=TIMER, headers={"Content-Type": "audio/flac"})
    assert words(reply.text) == SAID


def test_a_connection_serves_several_requests(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    for _ in range(3):
        connection.request("POST", "/predictions/whisper", TIMER, {"Accept": "text/plain"})
        reply = connection.getresponse()
        assert words(reply.read().decode()) == SAID


def test_metrics_count(server: Server) -> None:
    before = {name: server.metric(name) for name in ("whisper_requests_total", "whisper_audio_seconds_total", "whisper_windows_total")}
    post(server.url, data=TIMER)
    assert server.metric("whisper_requests_total") == before["whisper_requests_total"] + 1
    assert server.metric("whisper_audio_seconds_total") == pytest.approx(before["whisper_audio_seconds_total"] + 2.896, abs=0.01)
    assert server.metric("whisper_windows_total") >= before["whisper_windows_total"] + 1
    assert server.metric("whisper_open_requests") == 0
