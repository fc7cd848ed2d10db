"""Recordings and what is said in them: a folder, a manifest, LibriSpeech's layout, the sets of real speech, the bundled model's own."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from whispercore.audio.recording import read_samples
from whispercore.errors import ConfigurationError
from whispercore.types import SAMPLE_RATE

from . import sounds
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
class Utterance:
    """A stretch of a recording in which somebody speaks; times in seconds from the recording's beginning."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file and the words said in it, empty where nobody speaks.

    `words` and `utterances` where their times are known. `fields`: what else its manifest tells.
    """

    path: Path
    text: str
    words: tuple[TrueWord, ...] = ()
    language: str = "en"
    utterances: tuple[Utterance, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

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


def of(path: Path) -> list[Recording]:
    """A manifest, LibriSpeech's layout, or a folder with a .txt beside each sound. Raises ConfigurationError."""
    if path.is_file():
        return manifest(path)
    with suppress(ConfigurationError):
        return librispeech(path)
    return folder(path)


def speech_folder() -> Path:
    """Where the recordings of real speech are: WHISPER_SPEECH_DATA, else ../shared/data/speech beside this checkout."""
    return Path(os.environ.get("WHISPER_SPEECH_DATA") or ROOT.parent / "shared" / "data" / "speech")


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
    return Recording(
        path.parent / audio,
        text.strip(),
        tuple(_word(word) for word in _list(fields, "words")),
        fields.get("language") or "en",
        tuple(Utterance(one["start"], one["end"], one["text"]) for one in _list(fields, "segments")),
        {name: fields[name] for name in ("set", "snr_db", "noise") if name in fields},
    )


def _list(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = fields.get(name)
    return found if isinstance(found, list) else []


def _word(told: dict[str, Any]) -> TrueWord:
    return TrueWord(told.get("word") or told["text"], told["start"], told["end"])


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


@dataclass(frozen=True, slots=True)
class Set:
    """Recordings that are measured together. `told`: each reader is told the language. `timed`: it is asked for word times."""

    name: str
    recordings: list[Recording]
    told: bool = False
    timed: bool = False


Select = Callable[[Recording], bool]


def _named(*names: str) -> Select:
    return lambda one: one.fields.get("set") in names


def _noisy(snr_db: int) -> Select:
    """The manifest leaves `snr_db` out where it is 0."""
    return lambda one: one.fields.get("set") == "derived-noisy" and one.fields.get("snr_db", 0) == snr_db


SPEECH: dict[str, Select] = {
    "test-clean": _named("librispeech-test-clean"),
    "test-other": _named("librispeech-test-other"),
    "chapters": _named("librispeech-chapters"),
    "dictation": _named("rosehill-dictation"),
    "noisy-10dB": _noisy(10),
    "noisy-0dB": _noisy(0),
    "telephone": _named("derived-telephone"),
    "silence": _named("derived-silence"),
    "commands": _named("ohf-commands"),
    "kerstin": _named("kerstin"),
    "languages": _named("common-voice"),
    "languages-told": _named("common-voice"),
    "word-times": _named("nathalie", "mfa"),
    "mix": _named("librispeechmix"),
}
"""Real speech, by what its manifest calls it."""
QUIET = ("sounds", "sounds-10min")
"""Three hours without speech, and ten minutes of the same kinds for readers that decode noise at length."""
BUNDLED = ("heldout", "quiet", "espeak")
"""The bundled model's own: sentences of its grammar, its sounds without speech, its synthetic speech with exact word times."""
SETS = (*SPEECH, *QUIET, *BUNDLED)
_TOLD = ("languages-told", "word-times", *BUNDLED)
_TIMED = ("word-times", "espeak")


def named(name: str, hours: float = sounds.HOURS) -> Set:
    """The set of this name; `hours`: how long `sounds` is.

    Raises ConfigurationError for an unknown name, and when the speech is not on this machine.
    """
    return Set(name, _recordings(name, hours), told=name in _TOLD, timed=name in _TIMED)


def _recordings(name: str, hours: float) -> list[Recording]:
    if name in QUIET:
        return [Recording(path, "") for path in sounds.made(hours if name == "sounds" else min(hours, 1 / 6))]
    if name in BUNDLED:
        return quiet() if name == "quiet" else manifest({"heldout": HELDOUT, "espeak": WORDS}[name])
    if name not in SPEECH:
        raise ConfigurationError(f"unknown set '{name}'; known: {', '.join(SETS)}", param="sets")
    listed = speech_folder() / "manifest.jsonl"
    if not listed.is_file():
        needed = "set WHISPER_SPEECH_DATA to the folder of recordings with references, or give --root"
        raise ConfigurationError(f"there is no {listed}; {needed}", param="sets")
    return _some(filter(SPEECH[name], manifest(listed)), f"{listed} lists no recording of the set {name}")
