"""OpenAI's Node client from npm, unmodified, against the real server. client.mjs sends every kind of request once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.node.packages import node_project
from tests.serve.recordings import SAMPLES, TRANSCRIPTS, words
from tests.serve.server import FRONTS, Server

EXPECTED = words(TRANSCRIPTS["timer.flac"])
pytestmark = FRONTS


@pytest.fixture(scope="module")
def project() -> Path:
    return node_project()


@pytest.fixture(scope="module")
def replies(server: Server, project: Path) -> dict[str, Any]:
    """All replies to the client, by name."""
    command = ["node", "client.mjs", server.openai_url, str(SAMPLES / "timer.flac")]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.mark.parametrize("name", ["json", "auto", "server_vad", "logprobs"])
def test_json(replies: dict[str, Any], name: str) -> None:
    assert words(replies[name]["text"]) == EXPECTED
    assert replies[name]["usage"] == {"type": "duration", "seconds": 3}


@pytest.mark.parametrize("name", ["options", "hints"])
def test_hints_are_taken(replies: dict[str, Any], name: str) -> None:
    """A prompt may mislead the small bundled model, so the reply only needs to have words."""
    assert words(replies[name]["text"])


@pytest.mark.parametrize(("name", "mark"), [("text", ""), ("srt", "00:00:00,"), ("vtt", "WEBVTT")])
def test_text(replies: dict[str, Any], name: str, mark: str) -> None:
    assert mark in replies[name]
    assert set(EXPECTED) <= set(words(replies[name]))


@pytest.mark.parametrize(("name", "has_words"), [("verbose", False), ("words_segments", True), ("segments_words", True)])
def test_verbose_json(replies: dict[str, Any], name: str, has_words: bool) -> None:
    reply = replies[name]
    assert (reply["task"], reply["language"], type(reply["duration"])) == ("transcribe", "english", float)
    assert words(" ".join(segment["text"] for segment in reply["segments"])) == EXPECTED
    assert ("words" in reply) == has_words
    if has_words:
        assert words(" ".join(word["word"] for word in reply["words"])) == EXPECTED


def test_logprobs(replies: dict[str, Any]) -> None:
    logprobs = replies["logprobs"]["logprobs"]
    assert words("".join(entry["token"] for entry in logprobs)) == EXPECTED
    assert all(entry["logprob"] <= 0 and bytes(entry["bytes"]).decode() == entry["token"] for entry in logprobs)


@pytest.mark.parametrize("name", ["stream", "stream_logprobs"])
def test_stream(replies: dict[str, Any], name: str) -> None:
    *deltas, done = replies[name]
    assert deltas and {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert words(done["text"]) == EXPECTED
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert all(("logprobs" in event) == (name == "stream_logprobs") for event in replies[name])


def test_translation(replies: dict[str, Any]) -> None:
    assert words(replies["translation"]["text"])


def test_models(replies: dict[str, Any]) -> None:
    assert [model["object"] for model in replies["models"]] == ["model"]


@pytest.mark.parametrize(
    ("name", "error", "status", "param", "code"),
    [
        ("bad_value", "BadRequestError", 400, "temperature", "invalid_value"),
        ("unknown_field", "BadRequestError", 400, "beam_sise", "unknown_parameter"),
        ("bad_stream", "BadRequestError", 400, "language", "invalid_value"),
        ("no_audio", "APIError", 415, None, "unsupported_audio"),
        ("no_path", "NotFoundError", 404, None, "not_found"),
    ],
)
def test_errors(replies: dict[str, Any], name: str, error: str, status: int, param: str | None, code: str) -> None:
    reply = replies[name]
    assert reply["isAPIError"] and reply["requestID"] and reply["message"]
    assert (reply["name"], reply["status"], reply["param"], reply["code"]) == (error, status, param, code)
