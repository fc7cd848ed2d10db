"""Recordings and what is said in them: a folder, a manifest, LibriSpeech's layout, the held-out sets, sounds without speech."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from whispercore.audio import read_samples
from whispercore.errors import ConfigurationError
from whispercore.types import SAMPLE_RATE

from .espeak import TrueWord, nano
from .work import ROOT, SCRATCH

HELDOUT = ROOT / "tests" / "data" / "heldout" / "manifest.json"
WORDS = ROOT / "tests" / "data" / "words" / "manifest.json"
QUIET_SEED = 2025
"""The seed of the model card's own set of sounds without speech."""

SOUNDS = frozenset({".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".aiff", ".wma", ".amr"})
_AUDIO = ("audio", "file", "path", "audio_filepath", "audio_path")
_TEXT = ("text", "sentence", "transcript", "transcription")
"""What manifests call the two: ours, Common Voice's, NeMo's."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file and the words said in it; empty where nobody speaks. `words` where their times are known."""

    path: Path
    text: str
    words: tuple[TrueWord, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it lasts. Raises WhisperError when it cannot be read."""
        try:
            return float(soundfile.info(self.path).duration)
        except soundfile.LibsndfileError:  # it knows fewer containers than ours
            return len(read_samples(self.path)) / SAMPLE_RATE


def folder(root: Path) -> list[Recording]:
    """Every audio file below `root` with a .txt of the same name beside it. Raises ConfigurationError when there is none."""
    files = (path for path in sorted(_directory(root).rglob("*")) if path.suffix.lower() in SOUNDS)
    found = [Recording(path, _read(path.with_suffix(".txt"))) for path in files if path.with_suffix(".txt").is_file()]
    return _some(found, f"{root} holds no audio file with its words in a .txt of the same name")


def manifest(path: Path) -> list[Recording]:
    """The recordings listed in .json (a list), .jsonl, .csv or .tsv, paths relative to it. Raises ConfigurationError."""
    try:
        entries = list(_entries(path))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", param="manifest") from None
    except (ValueError, csv.Error) as error:
        raise ConfigurationError(f"{path} is not a manifest: {error}", param="manifest") from None
    return _some([_recording(path, number, entry) for number, entry in enumerate(entries, 1)], f"{path} lists no recording")


def librispeech(root: Path) -> list[Recording]:
    """LibriSpeech: every *.trans.txt below `root`, whose lines are ID TEXT, and ID.flac beside it. Raises ConfigurationError."""
    lines = ((path, line) for path in sorted(_directory(root).rglob("*.trans.txt")) for line in _read(path).splitlines() if line.strip())
    found = [Recording(path.parent / f"{name}.flac", text) for path, line in lines for name, _, text in [line.strip().partition(" ")]]
    return _some(found, f"{root} holds no *.trans.txt; give the folder of a LibriSpeech set, such as LibriSpeech/test-clean")


def quiet() -> list[Recording]:
    """The sounds without speech of the model card's evaluation: silence, noise, hum, tones, 2 to 40 s long. Made once."""
    made = SCRATCH / f"quiet-{QUIET_SEED}"
    made.mkdir(parents=True, exist_ok=True)
    found = []
    for number, sound in enumerate(nano("heldout").quiet(QUIET_SEED)):
        path = made / f"{sound.voice}-{number:02d}.wav"
        if not path.exists():
            soundfile.write(path.with_suffix(".part"), sound.samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
            path.with_suffix(".part").rename(path)
        found.append(Recording(path, ""))
    return found


class _Tabs(csv.excel_tab):
    quoting = csv.QUOTE_NONE


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    kind, text = path.suffix.lower(), path.read_text(encoding="utf-8-sig")
    if kind in (".csv", ".tsv"):
        # Common Voice's .tsv quotes nothing, and its sentences have quotation marks.
        dialect = {".csv": csv.excel, ".tsv": _Tabs}[kind]
        yield from csv.DictReader(io.StringIO(text, newline=""), dialect=dialect, strict=True)
    elif kind == ".jsonl":
        yield from (json.loads(line) for line in text.splitlines() if line.strip())
    elif kind == ".json":
        yield from json.loads(text)
    else:
        raise ValueError("its name must end in .json, .jsonl, .csv or .tsv")


def _recording(path: Path, number: int, entry: Any) -> Recording:
    fields = entry if isinstance(entry, dict) else {}
    audio = next((fields[name] for name in _AUDIO if fields.get(name)), None)
    text = next((fields[name] for name in _TEXT if isinstance(fields.get(name), str)), None)
    if not isinstance(audio, str) or text is None:
        raise ConfigurationError(f"{path}, entry {number}: it needs an audio file ('audio') and its words ('text')", param="manifest")
    words = fields.get("words")
    known = tuple(TrueWord(**word) for word in words) if isinstance(words, list) else ()
    return Recording(path.parent / audio, text.strip(), known)


def _directory(root: Path) -> Path:
    if not root.is_dir():
        raise ConfigurationError(f"{root} is not a folder", param="root")
    return root


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig").strip()


def _some(found: Iterable[Recording], otherwise: str) -> list[Recording]:
    if not (recordings := list(found)):
        raise ConfigurationError(otherwise, param="root")
    return recordings
