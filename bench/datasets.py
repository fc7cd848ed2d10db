"""Recordings with references: folders, manifests, LibriSpeech's layout, sets of real speech, the bundled model's own
sets."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
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
"""The names of the two columns in manifests of this project, Common Voice and NeMo."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of speech in a recording; times in seconds from the recording's beginning."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file and its reference text, which is empty for a recording without speech.

    `words` and `utterances` have entries when their times are known. `fields`: further columns of the manifest.
    """

    path: Path
    text: str
    words: tuple[TrueWord, ...] = ()
    language: str = "en"
    utterances: tuple[Utterance, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def seconds(self) -> float:
        """The duration. Raises WhisperError when the file cannot be read."""
        try:
            return float(soundfile.info(self.path).duration)
        except soundfile.LibsndfileError:  # our reader supports more containers
            return len(read_samples(self.path)) / SAMPLE_RATE


def folder(root: Path) -> list[Recording]:
    """Every audio file below `root` that has a .txt file of the same name.

    Raises ConfigurationError when there is none.
    """
    files = (path for path in sorted(_directory(root).rglob("*")) if path.suffix.lower() in SOUNDS)
    recordings = [Recording(path, _read(path.with_suffix(".txt"))) for path in files if path.with_suffix(".txt").is_file()]
    return _not_empty(recordings, f"{root} holds no audio file with its words in a .txt of the same name")


def manifest(path: Path) -> list[Recording]:
    """The recordings listed in .json (a list), .jsonl, .csv or .tsv, paths relative to it.

    Raises ConfigurationError.
    """
    try:
        entries = list(_entries(path))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", param="manifest") from None
    except (ValueError, csv.Error) as error:
        raise ConfigurationError(f"{path} is not a manifest: {error}", param="manifest") from None
    return _not_empty([_recording(path, number, entry) for number, entry in enumerate(entries, 1)], f"{path} lists no recording")


def librispeech(root: Path) -> list[Recording]:
    """LibriSpeech: every *.trans.txt below `root` has lines `ID TEXT`, and ID.flac lies beside it.

    Raises ConfigurationError.
    """
    lines = ((path, line) for path in sorted(_directory(root).rglob("*.trans.txt")) for line in _read(path).splitlines() if line.strip())
    recordings = [Recording(path.parent / f"{name}.flac", text) for path, line in lines for name, _, text in [line.strip().partition(" ")]]
    return _not_empty(recordings, f"{root} holds no *.trans.txt; give the folder of a LibriSpeech set, such as LibriSpeech/test-clean")


def of(path: Path) -> list[Recording]:
    """A manifest, LibriSpeech's layout, or a folder with a .txt beside each sound. Raises ConfigurationError."""
    if path.is_file():
        return manifest(path)
    with suppress(ConfigurationError):
        return librispeech(path)
    return folder(path)


def speech_folder() -> Path:
    """The folder of the recordings of real speech: WHISPER_SPEECH_DATA, else ../shared/data/speech beside this
    checkout."""
    return Path(os.environ.get("WHISPER_SPEECH_DATA") or ROOT.parent / "shared" / "data" / "speech")


def quiet() -> list[Recording]:
    """The recordings without speech of the model card's evaluation: silence, noise, hum, tones, 2 to 40 s long.

    Written once.
    """
    folder = SCRATCH / f"quiet-{QUIET_SEED}"
    folder.mkdir(parents=True, exist_ok=True)
    recordings = []
    for number, sound in enumerate(nano("heldout").quiet(QUIET_SEED)):
        path = folder / f"{sound.voice}-{number:02d}.wav"
        if not path.exists():
            soundfile.write(path.with_suffix(".part"), sound.samples, SAMPLE_RATE, format="WAV", subtype="FLOAT")
            path.with_suffix(".part").rename(path)
        recordings.append(Recording(path, ""))
    return recordings


class _Tabs(csv.excel_tab):
    quoting = csv.QUOTE_NONE


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    kind, text = path.suffix.lower(), path.read_text(encoding="utf-8-sig")
    if kind in (".csv", ".tsv"):
        # Common Voice's .tsv does not quote its cells, and its sentences contain quotation marks.
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
        tuple(Utterance(entry["start"], entry["end"], entry["text"]) for entry in _list(fields, "segments")),
        {name: fields[name] for name in ("set", "snr_db", "noise") if name in fields},
    )


def _list(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = fields.get(name)
    return value if isinstance(value, list) else []


def _word(entry: dict[str, Any]) -> TrueWord:
    return TrueWord(entry.get("word") or entry["text"], entry["start"], entry["end"])


def _directory(root: Path) -> Path:
    if not root.is_dir():
        raise ConfigurationError(f"{root} is not a folder", param="root")
    return root


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig").strip()


def _not_empty(recordings: list[Recording], message: str) -> list[Recording]:
    if not recordings:
        raise ConfigurationError(message, param="root")
    return recordings


@dataclass(frozen=True, slots=True)
class Set:
    """Recordings that are measured together.

    `language_given`: runners get the language. `timed`: runners return word times.
    """

    name: str
    recordings: list[Recording]
    language_given: bool = False
    timed: bool = False


Select = Callable[[Recording], bool]


def _named(*names: str) -> Select:
    return lambda recording: recording.fields.get("set") in names


def _noisy(snr_db: int) -> Select:
    """The manifest has no `snr_db` where it is 0."""
    return lambda recording: recording.fields.get("set") == "derived-noisy" and recording.fields.get("snr_db", 0) == snr_db


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
"""Real speech: each set's name here and its recordings in the manifest."""
CORE = ("test-clean", "chapters", "dictation", "silence", "noisy-10dB")
"""The sets that every row of `bench accuracy` transcribes. Time, processor time and memory are compared on these."""
QUIET = ("sounds", "sounds-10min")
"""Three hours without speech, and ten minutes of the same kinds for runners that decode noise slowly."""
BUNDLED = ("heldout", "quiet", "espeak")
"""The bundled model's own sets: sentences of its grammar, recordings without speech, synthetic speech with exact word
times."""
SETS = (*SPEECH, *QUIET, *BUNDLED)
_LANGUAGE_GIVEN = ("languages-told", "word-times", *BUNDLED)
_TIMED = ("word-times", "espeak")


def named(name: str, hours: float = sounds.HOURS) -> Set:
    """The set of this name. `hours`: the length of the set `sounds`.

    Raises ConfigurationError for an unknown name, and when the recordings are not on this machine.
    """
    return Set(name, _recordings(name, hours), language_given=name in _LANGUAGE_GIVEN, timed=name in _TIMED)


def _recordings(name: str, hours: float) -> list[Recording]:
    if name in QUIET:
        return [Recording(path, "") for path in sounds.recordings(hours if name == "sounds" else min(hours, 1 / 6))]
    if name in BUNDLED:
        return quiet() if name == "quiet" else manifest({"heldout": HELDOUT, "espeak": WORDS}[name])
    if name not in SPEECH:
        raise ConfigurationError(f"unknown set '{name}'; known: {', '.join(SETS)}", param="sets")
    path = speech_folder() / "manifest.jsonl"
    if not path.is_file():
        hint = "set WHISPER_SPEECH_DATA to the folder of recordings with references, or give --root"
        raise ConfigurationError(f"there is no {path}; {hint}", param="sets")
    return _not_empty(list(filter(SPEECH[name], manifest(path))), f"{path} lists no recording of the set {name}")
