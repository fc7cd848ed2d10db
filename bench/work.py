"""The work both servers get: a model, a number of tokens for every window, 10 s clips, and what a request asks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import soundfile

from whispercore import checkpoints
from whispercore.api import request
from whispercore.api.fields import RAW_FIELD
from whispercore.audio.recording import read_samples
from whispercore.engines import Engine, load_engine
from whispercore.options import Options
from whispercore.serving.transcriber import Transcriber
from whispercore.settings import Settings
from whispercore.types import SAMPLE_RATE, Decoded, Samples, Window

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / "build" / "bench"
SPEECH = ROOT / "samples" / "home.flac"

CLIP_SECONDS = 10
CLIPS = 8
TOKENS = 60
"""Decoded from every window: what 10 s of brisk speech hold, timestamps included."""

HEADERS = {
    "Content-Type": "audio/flac",
    "X-Whisper-Language": "en",
    "X-Whisper-Temperature": "[0.0]",
    "X-Whisper-Vad-Filter": "false",
    "X-Whisper-No-Speech-Threshold": "none",
    "X-Whisper-Logprob-Threshold": "none",
}
"""One pass over each window whatever the model says, and nothing left out: random weights say nothing worth a second look."""


def options() -> Options:
    """What `HEADERS` ask, read by the server's own parser."""
    return request.parse({RAW_FIELD: b"-"}, HEADERS).options


def clips() -> list[bytes]:
    """Different clips of speech, each `CLIP_SECONDS` long, as FLAC."""
    speech = read_samples(SPEECH)
    step = (len(speech) - CLIP_SECONDS * SAMPLE_RATE) // (CLIPS - 1)
    return [encode(speech[number * step :][: CLIP_SECONDS * SAMPLE_RATE]) for number in range(CLIPS)]


def encode(samples: Samples) -> bytes:
    """The samples, mono at 16 kHz, as a FLAC file."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC")
    return file.getvalue()


def long_recording(seconds: int) -> Path:
    """An mp3 of so many seconds: the speech sample again and again. Made once."""
    path = SCRATCH / f"speech-{seconds}.mp3"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    speech, missing = read_samples(SPEECH), seconds * SAMPLE_RATE
    unfinished = path.with_suffix(".part")
    with soundfile.SoundFile(unfinished, "w", SAMPLE_RATE, 1, format="MP3") as file:
        while missing:
            piece = speech[:missing]
            file.write(piece)
            missing -= len(piece)
    return unfinished.rename(path)


def checkpoint(size: str) -> Path:
    """The bundled model, or a checkpoint with random weights of OpenAI's `size`, made once."""
    if size == "nano":
        return ROOT / "whisper-models" / "nano.pt"
    path = SCRATCH / f"{size}-random.pt"
    if not path.exists():
        checkpoints.write_random(checkpoints.dimensions(size), path)
    return path


def environment(size: str, *, tokens: int = TOKENS) -> dict[str, str]:
    """Our server's settings for a model, converted for its engine; `tokens` 0: as many as the model says."""
    variables = {
        "WHISPER_MODEL": str(checkpoint(size)),
        "WHISPER_CONVERTED_DIR": str(ROOT / "build" / "models"),
        "WHISPER_FIXED_TOKENS": str(tokens),
    }
    checkpoints.prepare(Settings.load(environ=variables))
    return variables


class CountingEngine:
    """An engine that remembers how many tokens it decoded from each window: the proof that the work is what it is said to be."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.max_batch, self.n_mels, self.tokenizer = engine.name, engine.max_batch, engine.n_mels, engine.tokenizer
        self.batch_key, self.describe, self.free_memory, self.close = engine.batch_key, engine.describe, engine.free_memory, engine.close
        self.tokens: list[int] = []

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """The engine's answer, counted."""
        answers = self._engine.decode(windows)
        self.tokens += [len(answer.tokens) for answer in answers]
        return answers


def in_process(variables: dict[str, str]) -> tuple[Transcriber, CountingEngine]:
    """The core in this process, set as the server is."""
    settings = Settings.load(environ=variables)
    engine = CountingEngine(load_engine(settings))
    return Transcriber(settings, engine=engine), engine
