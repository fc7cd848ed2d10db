"""The clients, as a user runs them, against the real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.serve.recordings import SAMPLES, TRANSCRIPTS, words
from tests.serve.server import ROOT, Server


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "clients" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_transcribe_prints_the_words(server: Server) -> None:
    done = run("transcribe.py", SAMPLES / "timer.flac", "--url", server.url)
    assert (done.returncode, words(done.stdout)) == (0, words(TRANSCRIPTS["timer.flac"]))


def test_transcribe_saves_subtitles(server: Server, tmp_path: Path) -> None:
    done = run(
        "transcribe.py", SAMPLES / "timer.flac", SAMPLES / "weather.mp3", "--format", "srt", "--output-dir", tmp_path, "--url", server.url
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"timer.srt", "weather.srt"}
    assert " --> " in (tmp_path / "weather.srt").read_text()


def test_transcribe_tells_what_failed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_text("dear server, " * 100)
    done = run("transcribe.py", tmp_path / "letter.wav", SAMPLES / "timer.flac", "--url", server.url)
    assert done.returncode == 1
    assert "letter.wav" in done.stderr
    assert words(TRANSCRIPTS["timer.flac"]) == words(done.stdout)[-6:]


def test_bulk_request_measures(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "load.json"
    plot = tmp_path / "load.html"
    sizes = ("--concurrency", 4, "--repeat", 5)
    done = run("bulk_request.py", SAMPLES / "timer.flac", *sizes, "--json", report, "--plot", plot, "--url", server.url)
    assert done.returncode == 0, done.stderr
    content = json.loads(report.read_text())
    assert "p99" in json.dumps(content)
    assert plot.stat().st_size > 1000
