"""Recordings for a load: sentences of the samples in random order, so that no two requests send the same."""

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
"""Seconds of silence between two sentences, as of somebody who talks."""


@cache
def sentences() -> tuple[Samples, ...]:
    """Those of the sample, where its voice detection hears a pause between them."""
    return tuple(stretch.samples for stretch in cutting.cut([read_samples(SPEECH)], Options()))


def recording(seconds: float, seed: int) -> Samples:
    """Speech of just so many seconds; another for each seed."""
    chance = random.Random(seed)
    pieces: list[Samples] = []
    missing = int(seconds * SAMPLE_RATE)
    for piece in _talk(chance):
        pieces.append(piece[:missing])
        missing -= len(pieces[-1])
        if not missing:
            break
    samples: Samples = np.concatenate(pieces)
    return samples


def _talk(chance: random.Random) -> Iterator[Samples]:
    while True:
        yield chance.choice(sentences())
        yield np.zeros(int(chance.uniform(*PAUSES) * SAMPLE_RATE), np.float32)


def clips(count: int, seconds: float, seed: int) -> list[bytes]:
    """So many different clips as FLAC; no two of different seeds below a million clips are the same."""
    return [encode(recording(seconds, 1_000_000 * seed + number)) for number in range(count)]


def long_recording(seconds: int, seed: int) -> bytes:
    """A long recording as mp3. Made once, kept as a file."""
    path = SCRATCH / f"talk-{seconds}-{seed}.mp3"
    if not path.exists():
        _write_mp3(recording(seconds, seed), path)
    return path.read_bytes()


def _write_mp3(samples: Samples, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3")
    path.write_bytes(file.getvalue())
