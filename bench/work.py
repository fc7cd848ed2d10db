"""The work that is the same for all servers: the model, the tokens decoded from every window, the clips, the request's
options."""

from __future__ import annotations

import io
import os
import time
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
"""Tokens decoded from every window: about as many as 10 s of fast speech have, timestamps included."""

HEADERS = {
    "Content-Type": "audio/flac",
    "X-Whisper-Language": "en",
    "X-Whisper-Temperature": "[0.0]",
    "X-Whisper-Vad-Filter": "false",
    "X-Whisper-No-Speech-Threshold": "none",
    "X-Whisper-Logprob-Threshold": "none",
}
"""Every window is decoded once and kept: with random weights, VAD, thresholds and fallback would only change the
amount of work."""


def options() -> Options:
    """The options in `HEADERS`, read by the server's parser."""
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
    """An mp3 of this duration: the speech sample, repeated. Written once."""
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
    """The bundled model, or a checkpoint of OpenAI's `size` with random weights, which is written once."""
    if size == "nano":
        return ROOT / "whisper-models" / "nano.pt"
    path = SCRATCH / f"{size}-random.pt"
    if not path.exists():
        checkpoints.write_random(checkpoints.dimensions(size), path)
    return path


def trained(size: str) -> Path:
    """OpenAI's weights of this size as a .pt, which whisper.load_model reads. Those in another form are written as one, once.

    Raises ConfigurationError when they are not in the folder WHISPER_MODELS_DIR (default: whisper-models).
    """
    models = os.environ.get("WHISPER_MODELS_DIR") or str(ROOT / "whisper-models")
    located = checkpoints.locate(Settings.load(environ={"WHISPER_MODEL": size, "WHISPER_MODELS_DIR": models}))
    if located.suffix == ".pt":
        return located
    path = SCRATCH / f"{size}-{checkpoints.sha256(located)[:12]}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        loaded, unfinished = checkpoints.load_checkpoint(located), path.with_suffix(".part")
        checkpoints.write_checkpoint(loaded.dims, loaded.state, unfinished)
        unfinished.rename(path)
    return path


def environment(model: str | Path, *, tokens: int = TOKENS) -> dict[str, str]:
    """Our server's settings for a checkpoint, or for a size with random weights, as environment variables; converts it.

    `tokens` 0: the model ends by itself.
    """
    variables = {
        "WHISPER_MODEL": str(checkpoint(model) if isinstance(model, str) else model),
        "WHISPER_CONVERTED_DIR": str(ROOT / "build" / "models"),
        "WHISPER_FIXED_TOKENS": str(tokens),
    }
    checkpoints.prepare(Settings.load(environ=variables))
    return variables


class CountingEngine:
    """An engine that counts the tokens it decoded from each window, to prove that contenders do equal work.

    `batch_seconds`: how long each batch took.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name, self.max_batch, self.n_mels, self.tokenizer = engine.name, engine.max_batch, engine.n_mels, engine.tokenizer
        self.batch_key, self.describe, self.free_memory, self.close = engine.batch_key, engine.describe, engine.free_memory, engine.close
        self.tokens: list[int] = []
        self.batch_seconds: list[float] = []

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode, and count the tokens of each window."""
        began = time.perf_counter()
        decoded = self._engine.decode(windows)
        self.batch_seconds.append(time.perf_counter() - began)
        self.tokens += [len(result.tokens) for result in decoded]
        return decoded


def in_process(variables: dict[str, str]) -> tuple[Transcriber, CountingEngine]:
    """The core in this process with the server's settings, and its engine."""
    settings = Settings.load(environ=variables)
    engine = CountingEngine(load_engine(settings))
    return Transcriber(settings, engine=engine), engine
