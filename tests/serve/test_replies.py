"""Every way to send a recording, and every reply format."""

from __future__ import annotations

import base64
import http.client
import json
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, assert_understood, words, write_wav
from tests.serve.server import FRONTS, Server

TIMER = (SAMPLES / "timer.flac").read_bytes()
EXPECTED = words(TRANSCRIPTS["timer.flac"])
pytestmark = FRONTS


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
    assert words(segment["text"]) == EXPECTED
    assert 0 <= segment["start"] < segment["end"] <= content["duration"]


@pytest.mark.parametrize("field", ["file", "audio", "data"])
def test_multipart(server: Server, field: str) -> None:
    reply = post(server.url, files={field: ("timer.flac", TIMER)}, data={"language": "en", "response_format": "text"})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert words(reply.text) == EXPECTED


def test_json_with_base64(server: Server) -> None:
    reply = post(server.url, json={"audio": base64.b64encode(TIMER).decode(), "language": "English", "vad_filter": False})
    assert words(reply.json()["text"]) == EXPECTED


def test_options_of_a_raw_body_are_headers(server: Server) -> None:
    headers = {"X-Whisper-Response-Format": "srt", "X-Whisper-Beam-Size": "2", "Content-Type": "audio/flac"}
    reply = post(server.url, data=TIMER, headers=headers)
    assert reply.headers["content-type"].startswith("application/x-subrip")
    number, times, text = reply.text.strip().splitlines()
    assert (number, " --> " in times, words(text)) == ("1", True, EXPECTED)


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
    assert set(EXPECTED) <= set(words(reply.text))


@pytest.mark.parametrize("path", ["", "/1.0/v1/audio/transcriptions"])
def test_the_reply_names_its_model_and_warns_that_it_is_a_demonstration(server: Server, path: str) -> None:
    content = post(server.url + path, files={"file": TIMER}, data={"model": "openai/whisper-large-v3"}).json()
    other, demonstration = content["warnings"]
    assert content["model"] == "nano" and words(content["text"]) == EXPECTED
    assert "large-v3" in other and "demonstration" in demonstration and "download_model.py base" in demonstration
    [listed] = requests.get(f"{server.url}/1.0/v1/models", timeout=60).json()["data"]
    assert listed["id"] == "nano" and "demonstration" in listed["warnings"][0]
    assert listed["max_audio_bytes"] == 150 * 1024 * 1024


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "tsv"])
def test_a_reply_without_json_has_model_and_warnings_in_headers(server: Server, form: str) -> None:
    reply = post(server.url, files={"file": TIMER}, data={"response_format": form, "model": "whisper-1"})
    assert reply.headers["x-whisper-model"] == "nano"
    assert "demonstration" in reply.headers["x-whisper-warnings"]


def test_silence_has_a_warning_that_explains_the_empty_text(server: Server, tmp_path: Path) -> None:
    silence = write_wav(tmp_path / "silence.wav", seconds=3).read_bytes()
    assert "no speech" in post(server.url, data=silence).json()["warnings"][-1]
    assert "no speech" in post(server.url, data=silence, headers={"Accept": "text/plain"}).headers["x-whisper-warnings"]


@pytest.mark.parametrize("kind", ["multipart/form-data", "Multipart/Form-Data", "MULTIPART/FORM-DATA"])
def test_a_form_in_capitals(server: Server, kind: str) -> None:
    """TorchServe's front end parses only the first spelling itself."""
    form = requests.Request("POST", server.url, files={"file": TIMER}, data={"language": "en-US", "response_format": "text"}).prepare()
    boundary = form.headers["Content-Type"].partition(";")[2]
    reply = post(server.url, data=form.body, headers={"CONTENT-TYPE": f"{kind};{boundary}"})
    assert (reply.status_code, words(reply.text)) == (200, EXPECTED)


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "APPLICATION/JSON; CHARSET=UTF-8"])
def test_json_in_capitals(server: Server, kind: str) -> None:
    body = json.dumps({"audio": base64.b64encode(TIMER).decode(), "language": "eng", "diarize": False}).encode()
    assert words(post(server.url, data=body, headers={"content-type": kind}).json()["text"]) == EXPECTED


def test_fields_of_other_servers(server: Server) -> None:
    """Fields of whisper-asr-webservice, LocalAI and whisperX are accepted when they request nothing unsupported."""
    data = {"language": "none", "diarize": "false", "translate": "false", "stream": "false", "encode": "true", "output": "json", "vad": "1"}
    assert words(post(server.url, files={"file": TIMER}, data=data).json()["text"]) == EXPECTED


def test_put_as_curl_does(server: Server) -> None:
    assert words(requests.put(server.url, data=TIMER, timeout=120).json()["text"]) == EXPECTED


def test_the_openai_paths(server: Server) -> None:
    base = server.openai_url
    reply = post(
        f"{base}/audio/transcriptions",
        files={"file": ("timer.flac", TIMER)},
        data={"model": "whisper-1", "response_format": "verbose_json"},
    )
    content = reply.json()
    assert words(content["text"]) == EXPECTED
    assert (content["task"], content["language"], content["usage"]) == ("transcribe", "english", {"type": "duration", "seconds": 3})
    assert requests.get(f"{base}/models", timeout=60).json()["data"][0]["object"] == "model"


def test_invocations_take_options_from_the_query(server: Server) -> None:
    reply = post(f"http://127.0.0.1:{server.port}/invocations?response_format=text", data=TIMER, headers={"Content-Type": "audio/flac"})
    assert words(reply.text) == EXPECTED


def test_a_connection_serves_several_requests(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    for _ in range(3):
        connection.request("POST", "/predictions/whisper", TIMER, {"Accept": "text/plain"})
        reply = connection.getresponse()
        assert words(reply.read().decode()) == EXPECTED


def test_metrics_count(server: Server) -> None:
    before = {name: server.metric(name) for name in ("whisper_requests_total", "whisper_audio_seconds_total", "whisper_windows_total")}
    post(server.url, data=TIMER)
    assert server.metric("whisper_requests_total") == before["whisper_requests_total"] + 1
    assert server.metric("whisper_audio_seconds_total") == pytest.approx(before["whisper_audio_seconds_total"] + 2.896, abs=0.01)
    assert server.metric("whisper_windows_total") >= before["whisper_windows_total"] + 1
    assert server.metric("whisper_open_requests") == 0
