"""Recordings for a load. Trained weights get read speech with its words; random weights get pieces of a sample in random order."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from whispercore.audio import cutting
from whispercore.audio.recording import read_samples
from whispercore.options import Options
from whispercore.types import SAMPLE_RATE, Samples

from . import datasets
from .datasets import Recording
from .work import CLIP_SECONDS, SCRATCH, SPEECH, encode

PAUSES = (0.2, 0.9)
"""The range of the silence between two sentences, in seconds."""
SENTENCE_SECONDS = (7.0, 15.0)
"""The range of durations of the sentences of read speech."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording to send: the bytes of its file, its duration, and its words; "" where they are not known."""

    audio: bytes
    seconds: float
    text: str = ""


class Material(Protocol):
    """The recordings of a measurement. No two clips of a load are the same: our server transcribes equal uploads once."""

    @property
    def name(self) -> str:
        """What the recordings are, for the table."""
        ...

    def clips(self, count: int, seed: int) -> list[Clip]:
        """Different clips. Fewer with the same seed are the first of these."""
        ...

    def long(self, seconds: float = 0.0) -> Clip:
        """The long recording, or about this much of its beginning."""
        ...


class ReadSpeech:
    """LibriSpeech in `datasets.speech_folder()`: its sentences of 7 to 15 s, and its longest chapter.

    The sentences are recordings of their own and utterances of the chapters. Raises ConfigurationError without the folder.
    """

    name = "LibriSpeech: sentences of 7 to 15 s, no two of a round the same, and a chapter"

    def __init__(self) -> None:
        chapters = datasets.named("chapters").recordings
        alone = [*datasets.named("test-clean").recordings, *datasets.named("test-other").recordings]
        self._chapter = max(chapters, key=lambda recording: recording.seconds)
        sentences = [Clip(recording.path.read_bytes(), recording.seconds, recording.text) for recording in alone]
        sentences += [clip for chapter in chapters for clip in _utterances(chapter)]
        shortest, longest = SENTENCE_SECONDS
        self._sentences = [clip for clip in sentences if shortest <= clip.seconds <= longest]

    def clips(self, count: int, seed: int) -> list[Clip]:
        """Sentences in random order. Raises ValueError when there are not so many."""
        if count > len(self._sentences):
            raise ValueError(f"{count} different sentences asked for; the folder has {len(self._sentences)} of 7 to 15 s")
        return random.Random(seed).sample(self._sentences, len(self._sentences))[:count]

    def long(self, seconds: float = 0.0) -> Clip:
        """The chapter as its file, or its first utterances that end within `seconds`."""
        chapter = self._chapter
        if not 0 < seconds < chapter.seconds:
            return Clip(chapter.path.read_bytes(), chapter.seconds, chapter.text)
        within = [utterance for utterance in chapter.utterances if utterance.end <= seconds]
        samples = read_samples(chapter.path)[: int(within[-1].end * SAMPLE_RATE)]
        return Clip(encode(samples), len(samples) / SAMPLE_RATE, " ".join(utterance.text for utterance in within))


def _utterances(chapter: Recording) -> Iterator[Clip]:
    """Every utterance of a chapter as FLAC."""
    samples = read_samples(chapter.path)
    for utterance in chapter.utterances:
        cut = samples[int(utterance.start * SAMPLE_RATE) : int(utterance.end * SAMPLE_RATE)]
        yield Clip(encode(cut), len(cut) / SAMPLE_RATE, utterance.text)


@dataclass(frozen=True, slots=True)
class Talk:
    """For random weights: clips and a recording of `long_seconds`, which are sentences of a sample in random order."""

    long_seconds: float

    @property
    def name(self) -> str:
        """What the recordings are, for the table."""
        return f"clips of {CLIP_SECONDS} s, no two the same, and a recording, of a sample's sentences in random order"

    def clips(self, count: int, seed: int) -> list[Clip]:
        """Clips of `CLIP_SECONDS`."""
        return [Clip(audio, CLIP_SECONDS) for audio in clips(count, CLIP_SECONDS, seed)]

    def long(self, seconds: float = 0.0) -> Clip:
        """A recording of `long_seconds`, or of `seconds`."""
        duration = round(min(seconds or self.long_seconds, self.long_seconds))
        return Clip(long_recording(duration, seed=0), duration)


@cache
def sentences() -> tuple[Samples, ...]:
    """The sentences of the sample, as VAD separates them."""
    return tuple(stretch.samples for stretch in cutting.cut([read_samples(SPEECH)], Options()))


def recording(seconds: float, seed: int) -> Samples:
    """Speech of exactly this duration; it differs by seed."""
    generator = random.Random(seed)
    pieces: list[Samples] = []
    missing = int(seconds * SAMPLE_RATE)
    for piece in _talk(generator):
        pieces.append(piece[:missing])
        missing -= len(pieces[-1])
        if not missing:
            break
    samples: Samples = np.concatenate(pieces)
    return samples


def _talk(generator: random.Random) -> Iterator[Samples]:
    while True:
        yield generator.choice(sentences())
        yield np.zeros(int(generator.uniform(*PAUSES) * SAMPLE_RATE), np.float32)


def clips(count: int, seconds: float, seed: int) -> list[bytes]:
    """`count` different clips as FLAC. Clips of different seeds differ, up to a million clips per seed."""
    return [encode(recording(seconds, 1_000_000 * seed + number)) for number in range(count)]


def long_recording(seconds: int, seed: int) -> bytes:
    """A long recording as mp3. Written once and kept as a file."""
    path = SCRATCH / f"talk-{seconds}-{seed}.mp3"
    if not path.exists():
        write_mp3(recording(seconds, seed), path)
    return path.read_bytes()


def write_mp3(samples: Samples, path: Path) -> None:
    """Write the samples, mono at 16 kHz, as an mp3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3")
    path.write_bytes(file.getvalue())
