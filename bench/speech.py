"""Recordings for a load: sentences of a sample in random order, so that no two requests are the same."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from whispercore.audio import cutting
from whispercore.audio.recording import read_samples
from whispercore.options import Options
from whispercore.types import SAMPLE_RATE, Samples

from .work import SCRATCH, SPEECH, encode

PAUSES = (0.2, 0.9)
"""The range of the silence between two sentences, in seconds."""


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
