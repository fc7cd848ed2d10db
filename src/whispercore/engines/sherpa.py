"""sherpa-onnx's own Whisper on its own exported form (`checkpoints.sherpa_export`): greedy, one window after the other, on the CPU.

It returns no scores, so there is neither a temperature fallback nor a silence check. It decodes at most 29.5 s of a window and takes no
prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import sherpa_onnx

from ..catalogue import GRAPH_PRECISIONS
from ..checkpoints import exported_folder
from ..checkpoints.graphs import read_metadata
from ..devices import choose_precision, decoding_threads
from ..errors import ConfigurationError, EngineError
from ..settings import Settings
from ..tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer
from ..types import SAMPLE_RATE, WINDOW_FRAMES, Decoded, Decoding, Samples, Window
from . import Engine
from .rules import batch_key, engine_error, make_decoded


def load(settings: Settings, device: str) -> Engine:
    """The engine with the settings' checkpoint, exported beforehand. Raises ConfigurationError."""
    if settings.device == "cuda":
        raise ConfigurationError("engine 'sherpa' runs on the CPU only: set device: cpu", param="device")
    if settings.fixed_tokens:
        raise ConfigurationError("engine 'sherpa' cannot decode a fixed number of tokens: set fixed_tokens: 0", param="fixed_tokens")
    dtype = choose_precision("sherpa", settings, "cpu", precisions("cpu"))
    folder, threads = exported_folder(settings, "sherpa", dtype), decoding_threads(settings)
    if not (folder / "tokens.txt").is_file():
        command = f"python -m whispercore.checkpoints prepare --model {settings.model}"
        message = f"'{settings.model}' is not exported for engine 'sherpa' in this precision yet; run: {command}"
        raise ConfigurationError(message, param="model")
    metadata = read_metadata(folder)
    files = {name: str(folder / file) for name, file in _FILES.items()}
    try:
        recognizer = sherpa_onnx.OfflineRecognizer.from_whisper(
            **files, num_threads=threads, tail_paddings=WINDOW_FRAMES, enable_segment_timestamps=True
        )
    except RuntimeError as error:
        message = f"{folder} cannot be loaded ({error}); delete it and run: python -m whispercore.checkpoints prepare"
        raise ConfigurationError(message, param="model") from error
    model, max_batch = settings.model_id, settings.batch_size or 1
    description: dict[str, str | int] = {"model": model, "device": "cpu", "precision": metadata.get("dtype", "as exported")}
    description |= {"threads": threads, "batch": max_batch}
    tokenizer = Tokenizer(int(metadata["n_vocab"]))
    return SherpaEngine(recognizer, tokenizer, n_mels=int(metadata["n_mels"]), max_batch=max_batch, description=description)


def precisions(device: str) -> tuple[str, ...]:
    """The dtypes that it computes in, which are the CPU's for any device; the first for auto."""
    return GRAPH_PRECISIONS["cpu"]


_LEAST_SAMPLES = SAMPLE_RATE // 10
"""sherpa-onnx 2.0 crashes, and the process with it, on audio that is too short for a single frame."""
_FILES = {"encoder": "encoder.onnx", "decoder": "decoder.onnx", "tokens": "tokens.txt"}


class SherpaEngine:
    """sherpa-onnx's recognizer. Not thread-safe. `max_batch` is 1 by default: larger batches are no faster."""

    name = "sherpa"

    def __init__(self, recognizer: Any, tokenizer: Tokenizer, *, n_mels: int, max_batch: int, description: dict[str, str | int]) -> None:
        self.max_batch, self.n_mels, self.tokenizer = max_batch, n_mels, tokenizer
        self._recognizer, self._description = recognizer, description

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Languages may differ within a batch."""
        return batch_key(decoding)

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode one window after the other."""
        if windows and self._recognizer is None:
            raise EngineError("the engine is closed")
        try:
            return [self._decode(window) for window in windows]
        except (RuntimeError, ValueError, MemoryError) as error:
            raise error if isinstance(error, EngineError) else engine_error(error, "sherpa-onnx", len(windows)) from error

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {"engine": self.name, **self._description}

    def free_memory(self) -> None:
        """Nothing: sherpa-onnx keeps its memory."""

    def close(self) -> None:
        """Free the weights."""
        self._recognizer = None

    def _decode(self, window: Window) -> Decoded:
        before, after = window.margin
        samples = window.samples[before : len(window.samples) - after]
        result = self._recognize(samples, window.decoding)
        tokens = self._tokens(result, timestamps=window.decoding.timestamps)
        language = result.lang or (self.tokenizer.multilingual and window.decoding.language) or "en"
        return make_decoded(self.tokenizer, tokens, window.decoding, language=language, avg_logprob=0.0, no_speech_prob=0.0)

    def _recognize(self, samples: Samples, decoding: Decoding) -> Any:
        """sherpa-onnx's result. Language and task belong to the recognizer, so they are set anew for every window."""
        config = self._recognizer.config
        whisper = config.model_config.whisper
        whisper.language, whisper.task = (decoding.language or "" if self.tokenizer.multilingual else "en"), decoding.task
        self._recognizer.recognizer.set_config(config)
        stream = self._recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, np.pad(samples, (0, max(0, _LEAST_SAMPLES - len(samples)))))
        self._recognizer.decode_stream(stream)
        return stream.result

    def _tokens(self, result: Any, *, timestamps: bool) -> list[int]:
        """The segments as Whisper's tokens: a timestamp, the tokens of the text, a timestamp."""
        begin = self.tokenizer.timestamp_begin
        texts = [self.tokenizer.encode(text) for text in result.segment_texts or filter(None, [result.text])]
        if not timestamps or not result.segment_texts:
            return list(chain.from_iterable(texts))
        spans = zip(result.segment_timestamps, texts, result.segment_durations, strict=True)
        return [token for start, text, duration in spans for token in (begin + _step(start), *text, begin + _step(start + duration))]


def _step(seconds: float) -> int:
    return round(seconds / SECONDS_PER_TIMESTAMP)
