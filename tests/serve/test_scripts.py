"""The client scripts, run as a user runs them, against the real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, studio, words, write_wav
from tests.serve.server import ROOT, Server


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "clients" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_transcribe_prints_the_text(server: Server) -> None:
    done = run("transcribe.py", SAMPLES / "timer.flac", "--url", server.url)
    assert (done.returncode, words(done.stdout)) == (0, words(TRANSCRIPTS["timer.flac"]))


def test_transcribe_saves_subtitles(server: Server, tmp_path: Path) -> None:
    done = run(
        "transcribe.py", SAMPLES / "timer.flac", SAMPLES / "weather.mp3", "--format", "srt", "--output-dir", tmp_path, "--url", server.url
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"timer.srt", "weather.srt"}
    assert " --> " in (tmp_path / "weather.srt").read_text()


def test_transcribe_names_the_file_that_failed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_text("dear server, " * 100)
    done = run("transcribe.py", tmp_path / "letter.wav", SAMPLES / "timer.flac", "--url", server.url)
    assert done.returncode == 1
    assert "letter.wav" in done.stderr
    assert words(TRANSCRIPTS["timer.flac"]) == words(done.stdout)[-6:]


@pytest.mark.parametrize("response_format", ["text", "json", "srt", "vtt", "tsv", "verbose_json"])
def test_a_streamed_transcript_is_the_plain_one(server: Server, tmp_path: Path, response_format: str) -> None:
    sound = SAMPLES / "home.flac"
    done = run("transcribe.py", sound, "--format", response_format, "--output-dir", tmp_path, "--url", server.url)
    assert done.returncode == 0, done.stderr
    [saved] = tmp_path.iterdir()
    headers = {"X-Whisper-Response-Format": response_format}
    plain = requests.post(server.url, data=sound.read_bytes(), headers=headers, timeout=120).content.decode()
    if "json" in response_format:
        assert json.loads(saved.read_text())["text"] == json.loads(plain)["text"]
        assert json.loads(saved.read_text()).keys() == json.loads(plain).keys()
    else:
        assert saved.read_text() == plain


@pytest.mark.parametrize(
    "path", ["", "/", "/predictions/whisper/1.0/v1", "/predictions/whisper/1.0/v1/audio/transcriptions", "/invocations"]
)
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_the_path_is_found(server: Server, path: str, scheme: str) -> None:
    base = server.url.removesuffix("/predictions/whisper").removeprefix("http://")
    done = run("transcribe.py", SAMPLES / "timer.flac", "--url", f"{scheme}{base}{path}")
    assert (done.returncode, words(done.stdout)) == (0, words(TRANSCRIPTS["timer.flac"])), done.stderr


def test_a_wrong_path_explains_the_right_one(server: Server) -> None:
    done = run("transcribe.py", SAMPLES / "timer.flac", "--url", server.url.removesuffix("/predictions/whisper") + "/transcribe")
    assert done.returncode == 1
    assert "http://HOST:8080 is enough" in done.stderr


def test_of_a_file_that_is_too_large_the_sound_track_is_sent(server: Server, tmp_path: Path) -> None:
    large = studio("timer.flac", 180 << 20, tmp_path / "large.wav")
    refused = run("transcribe.py", large, "--no-extract", "--max-bytes", 1 << 30, "--url", server.url)
    assert refused.returncode == 1
    assert "413" in refused.stderr and "TS_MAX_REQUEST_SIZE" in refused.stderr
    done = run("transcribe.py", large, "--url", server.url)
    assert re.search(r"sending its sound track only \((flac|encoded as flac)", done.stderr), done.stderr
    assert (done.returncode, words(done.stdout)) == (0, words(TRANSCRIPTS["timer.flac"]))


def test_silence_explains_the_empty_text(server: Server, tmp_path: Path) -> None:
    done = run("transcribe.py", write_wav(tmp_path / "silence.wav", seconds=5), "--url", server.url)
    assert (done.returncode, done.stdout.strip()) == (0, "")
    assert "no words: no speech was found" in done.stderr


def test_bulk_request_measures(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "load.json"
    plot = tmp_path / "load.html"
    sizes = ("--concurrency", 4, "--repeat", 5)
    done = run("bulk_request.py", SAMPLES / "timer.flac", *sizes, "--json", report, "--plot", plot, "--url", server.url)
    assert done.returncode == 0, done.stderr
    content = json.loads(report.read_text())
    assert "p99" in json.dumps(content)
    assert plot.stat().st_size > 1000
