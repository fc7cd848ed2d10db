"""Recordings to send: the samples, and files made from them."""

from __future__ import annotations

import json
import wave
from fractions import Fraction
from pathlib import Path

import av
import jiwer
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
TRANSCRIPTS: dict[str, str] = {entry["file"]: entry["text"] for entry in json.loads((SAMPLES / "transcripts.json").read_text())}


def words(text: str) -> list[str]:
    """The words in lower case without punctuation, for comparison."""
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def assert_understood(text: str, sample: str) -> None:
    """At most a fifth of the words are wrong: the bundled model is small.

    The words of another request would all be wrong.
    """
    wrong = jiwer.wer(" ".join(words(TRANSCRIPTS[sample])), " ".join(words(text)))
    assert wrong <= 0.2, f"{sample}: {text!r}, should be {TRANSCRIPTS[sample]!r}"


def write_wav(path: Path, *, seconds: float, rate: int = 16000, channels: int = 1, width: int = 2, frames: bytes = b"") -> Path:
    """`frames`, then silence up to `seconds`."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(frames)
        rest = int(seconds * rate) * channels * width - len(frames)
        while rest > 0:
            rest -= len(block := bytes(min(rest, 1 << 22)))
            file.writeframes(block)
    return path


def repeat(sample: str, times: int, path: Path) -> Path:
    """The sample, repeated."""
    samples, rate = soundfile.read(SAMPLES / sample, dtype="int16")
    soundfile.write(path, np.tile(samples, times), rate)
    return path


def studio(sample: str, size: int, path: Path) -> Path:
    """The sample in 192 kHz, 32 bit, 8 channels, then silence: a file of `size` bytes with little speech."""
    samples, rate = soundfile.read(SAMPLES / sample, dtype="int32")
    frames = np.repeat(np.repeat(samples, 192000 // rate)[:, None], 8, axis=1)
    return write_wav(path, seconds=(size - 44) / (192000 * 8 * 4), rate=192000, channels=8, width=4, frames=frames.tobytes())


def silent_film(path: Path) -> Path:
    """A video without a sound track."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width = stream.height = 32
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
