"""Speech synthesized by espeak-ng's library, which reports the exact times of words: the reference for word times.

python -m bench.espeak [--seed N] FOLDER     recordings of held-out sentences by held-out voices, and manifest.json with their words
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import itertools
import json
import random
import re
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from whispercore.errors import ConfigurationError
from whispercore.types import SAMPLE_RATE, Samples

from .work import ROOT

LIBRARY = "libespeak-ng.so.1"
NANO = ROOT / "whisper-models" / "nano"

# Of espeak-ng's speak_lib.h.
_SYNCHRONOUS, _PHONEME_EVENTS = 2, 1
_BY_CHARACTER, _UTF8 = 1, 1
_RATE, _PITCH = 1, 3
_WORD, _PHONEME = 1, 7
_CHUNK_MS = 200

PAUSES = ((0.5, 0.6), (0.5, 0.6), (0.5, 0.6), (0.5, 0.6), (0.5, 0.6), (0.5, 0.6), (0.4, 1.0, 2.0, 0.6), (0.6, 4.0, 6.0, 5.0, 3.0, 0.8))
"""Seconds of silence before, between and after the sentences of each recording: six of one sentence, one of three, one
of five."""
NOISE = 3e-5
"""Standard deviation of the noise in every recording: there is no digital silence, and FLAC files stay small."""


@dataclass(frozen=True, slots=True)
class TrueWord:
    """A spoken word and its times in seconds. A time is None where espeak-ng joins two words ("in the") and reports one event.

    A word that begins with a stop consonant starts with the silence of its closure, up to 0.06 s before it is audible.
    """

    word: str
    start: float | None
    end: float | None


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


class _Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender_age_variant", ctypes.c_ubyte * 4),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def nano(module: str) -> Any:
    """Import a module of the bundled model's training recipe, a folder that is not a package."""
    if str(NANO) not in sys.path:
        sys.path.append(str(NANO))
    return importlib.import_module(module)


@cache
def _library() -> tuple[Any, int]:
    """The library and its sample rate. Raises ConfigurationError when it is not installed."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise ConfigurationError("espeak-ng is not installed; on Debian: apt-get install espeak-ng") from None
    rate = library.espeak_Initialize(_SYNCHRONOUS, _CHUNK_MS, None, _PHONEME_EVENTS)
    if rate <= 0:
        raise ConfigurationError("espeak-ng does not find its voices; install espeak-ng-data")
    return library, rate


def speak(text: str, voice: str, *, words_per_minute: int = 160, pitch: int = 50) -> tuple[Samples, tuple[TrueWord, ...]]:
    """Synthesize one sentence → float32 samples at 16 kHz, and its words.

    Raises ConfigurationError for an unknown voice.
    """
    library, rate = _library()
    _set_voice(library, voice)
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    pieces: list[Any] = []
    begins: dict[int, int] = {}  # index of a word's first character → its first sample
    pauses: list[int] = []

    def take(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for event in itertools.takewhile(lambda event: event.type, (events[index] for index in itertools.count())):
            if event.type == _WORD:
                begins[event.text_position - 1] = event.sample
            elif event.type == _PHONEME and event.id.string.startswith(b"_"):
                pauses.append(event.sample)
        return 0

    callback = _Callback(take)
    library.espeak_SetSynthCallback(callback)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None)
    sound = np.concatenate(pieces).astype(np.float32) / 32768
    return soxr.resample(sound, rate, SAMPLE_RATE), _words(text, begins, pauses, rate)


def _set_voice(library: Any, voice: str) -> None:
    """Choose a voice by its name, else by its language, like the program espeak-ng."""
    if library.espeak_SetVoiceByName(voice.encode()) == 0:
        return
    if library.espeak_SetVoiceByProperties(ctypes.byref(_Voice(languages=voice.encode()))) != 0:
        raise ConfigurationError(f"espeak-ng has no voice '{voice}'")


def _words(text: str, begins: dict[int, int], pauses: list[int], rate: int) -> tuple[TrueWord, ...]:
    """The words of the text. A word ends where the next one begins, or at the pause before it."""
    spans = [(match.group(), begins.get(match.start())) for match in re.finditer(r"\S+", text)]
    words = []
    for index, (word, begin) in enumerate(spans):
        following = spans[index + 1][1] if index + 1 < len(spans) else pauses[-1]
        end = following if begin is None or following is None else min(following, *(pause for pause in pauses if pause > begin))
        words.append(TrueWord(word, _seconds(begin, rate), _seconds(end, rate)))
    return tuple(words)


def _seconds(sample: int | None, rate: int) -> float | None:
    return None if sample is None else round(sample / rate, 3)


def recording(rng: random.Random, pauses: tuple[float, ...]) -> tuple[Samples, dict[str, Any]]:
    """Held-out sentences of the nano model's grammar by one held-out voice, with silence around them, and their
    manifest entry."""
    heldout = nano("heldout")
    voice = rng.choice(nano("grammar").HELD_OUT_ESPEAK)
    pieces, texts, words = [_silence(pauses[0])], [], []
    for pause in pauses[1:]:
        text, at = heldout.new_sentence(rng), sum(map(len, pieces)) / SAMPLE_RATE
        samples, spoken = speak(text, voice, words_per_minute=rng.randint(135, 185), pitch=rng.randint(25, 75))
        words += [TrueWord(word.word, _shifted(word.start, at), _shifted(word.end, at)) for word in spoken]
        pieces += [samples, _silence(pause)]
        texts.append(text)
    sound = np.concatenate(pieces)
    sound += NOISE * np.random.default_rng(len(sound)).standard_normal(len(sound)).astype(np.float32)
    return sound, {"kind": "synthetic", "voice": voice, "text": " ".join(texts), "words": [asdict(word) for word in words]}


def _silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def _shifted(seconds: float | None, by: float) -> float | None:
    return None if seconds is None else round(seconds + by, 3)


def write(folder: Path, seed: int) -> None:
    """Write a recording for each entry of `PAUSES`, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, entries = random.Random(seed), []
    for number, pauses in enumerate(PAUSES):
        sound, entry = recording(rng, pauses)
        name = f"words-{number}.flac"
        soundfile.write(folder / name, sound, SAMPLE_RATE, subtype="PCM_16")
        entries.append({"file": name} | entry)
    lines = ",\n".join(" " + json.dumps(entry) for entry in entries)
    (folder / "manifest.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="tests/data/words is the committed set")
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    try:
        write(arguments.folder, arguments.seed)
    except ConfigurationError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
