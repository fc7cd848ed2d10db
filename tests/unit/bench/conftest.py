"""Recordings, a folder of real speech, and the figures of a set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from whispercore.types import SAMPLE_RATE


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(int(seconds * SAMPLE_RATE), np.float32), SAMPLE_RATE)
    return path


@pytest.fixture
def speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for WHISPER_SPEECH_DATA; all its recordings are silent."""
    lines: list[dict[str, Any]] = [
        {"audio": "a.wav", "text": "one two", "language": "en", "set": "librispeech-test-clean", "seconds": 1.0},
        {"audio": "b.wav", "text": "eins", "language": "de", "set": "common-voice"},
        {"audio": "c.wav", "text": "one", "language": "en", "set": "common-voice"},
        {"audio": "d.wav", "text": "three", "language": "en", "set": "derived-noisy", "snr_db": 10},
        {"audio": "e.wav", "text": "four", "language": "en", "set": "derived-noisy"},
        {
            "audio": "f.wav",
            "text": "five",
            "language": "nl",
            "set": "nathalie",
            "words": [{"text": "five", "start": 0.1, "end": 0.5}],
        },
        {
            "audio": "g.wav",
            "text": "six",
            "language": "en",
            "set": "librispeech-chapters",
            "segments": [{"start": 0, "end": 1, "text": "six"}],
        },
    ]
    for line in lines:
        write_sound(tmp_path / "speech" / line["audio"])
    (tmp_path / "speech" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("WHISPER_SPEECH_DATA", str(tmp_path / "speech"))
    return tmp_path / "speech"


FIGURES: dict[str, Any] = {
    "recordings": 4,
    "words": 100,
    "wer": 0.05,
    "insertions": 1,
    "deletions": 2,
    "substitutions": 2,
    "audio_seconds": 60.0,
    "seconds": 10.0,
    "cpu_seconds": 9.0,
    "rtfx": 6.0,
    "failed": 0,
    "failures": [],
    "peak_rss_mb": 900.0,
    "load_seconds": 2.0,
    "measured": {"date": "2026-01-01", "commit": "0123456789", "dirty": False, "load_average": [0.0]},
}
