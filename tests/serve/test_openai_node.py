"""The official Node client, from npm and unmodified, against the real server: client.mjs asks for everything, once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, words
from tests.serve.server import ROOT, Server

SAID = words(TRANSCRIPTS["timer.flac"])
SOURCES = ROOT / "tests" / "node"


@pytest.fixture(scope="module")
def project() -> Path:
    """tests/node with its packages, in the state folder: installed once, again when the lock file has changed."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node or npm is not installed: the Node client is not tested")
    folder = Path(os.environ.get("WHISPER_STATE_DIR") or ROOT / "build") / "node"
    lock = folder / "package-lock.json"
    fresh = lock.is_file() and lock.read_bytes() == (SOURCES / "package-lock.json").read_bytes() and (folder / "node_modules").is_dir()
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    if not fresh:
        done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode:
            lock.unlink()
            pytest.fail(f"npm ci failed: {done.stderr}")
    return folder


@pytest.fixture(scope="module")
def got(server: Server, project: Path) -> dict[str, Any]:
    """All that the client got."""
    command = ["node", "client.mjs", f"{server.url}/1.0/v1", str(SAMPLES / "timer.flac")]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["json", "auto", "server_vad", "logprobs"])
def test_json(got: dict[str, Any], name: str) -> None:
    assert words(got[name]["text"]) == SAID
    assert got[name]["usage"] == {"type": "duration", "seconds": 3}


@pytest.mark.parametrize("name", ["options", "hints"])
def test_hints_are_taken(got: dict[str, Any], name: str) -> None:
    """The bundled model is small, and a prompt may mislead it: words, not these words."""
    assert words(got[name]["text"])


@pytest.mark.parametrize(("name", "mark"), [("text", ""), ("srt", "00:00:00,"), ("vtt", "WEBVTT")])
def test_text(got: dict[str, Any], name: str, mark: str) -> None:
    assert mark in got[name]
    assert set(SAID) <= set(words(got[name]))


@pytest.mark.parametrize(("name", "has_words"), [("verbose", False), ("words_segments", True), ("segments_words", True)])
def test_verbose_json(got: dict[str, Any], name: str, has_words: bool) -> None:
    reply = got[name]
    assert (reply["task"], reply["language"], type(reply["duration"])) == ("transcribe", "english", float)
    assert words(" ".join(segment["text"] for segment in reply["segments"])) == SAID
    assert ("words" in reply) == has_words
    if has_words:
        assert words(" ".join(word["word"] for word in reply["words"])) == SAID


def test_logprobs(got: dict[str, Any]) -> None:
    logprobs = got["logprobs"]["logprobs"]
    assert words("".join(one["token"] for one in logprobs)) == SAID
    assert all(one["logprob"] <= 0 and bytes(one["bytes"]).decode() == one["token"] for one in logprobs)


@pytest.mark.parametrize("name", ["stream", "stream_logprobs"])
def test_stream(got: dict[str, Any], name: str) -> None:
    *deltas, done = got[name]
    assert deltas and {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert words(done["text"]) == SAID
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert all(("logprobs" in event) == (name == "stream_logprobs") for event in got[name])


def test_translation(got: dict[str, Any]) -> None:
    assert words(got["translation"]["text"])


def test_models(got: dict[str, Any]) -> None:
    assert [model["object"] for model in got["models"]] == ["model"]


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
def test_errors(got: dict[str, Any], name: str, error: str, status: int, param: str | None, code: str) -> None:
    found = got[name]
    assert found["isAPIError"] and found["requestID"] and found["message"]
    assert (found["name"], found["status"], found["param"], found["code"]) == (error, status, param, code)
