"""An engine with no weights: its words are a digest of the samples. For tests of everything around an engine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..errors import EngineError, OutOfMemory
from ..settings import Settings
from ..tokenizer import SECONDS_PER_TIMESTAMP, Tokenizer
from ..types import SAMPLE_RATE, Decoded, Decoding, Samples, Window
from . import Engine
from .rules import decoded, text_to_align

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "red", "green", "blue", "black", "white", "grey")
SECONDS_PER_SEGMENT = 5.0
PROBABILITY = 0.9
"""Of every token, where they are asked for."""
SILENCE = 1e-3
"""Below this amplitude nobody speaks."""


def load(settings: Settings, device: str) -> Engine:
    """The fake engine; only the batch size is taken from the settings."""
    return FakeEngine(max_batch=settings.batch_size or 8)


def precisions(device: str) -> tuple[str, ...]:
    """It computes nothing."""
    return ("float32",)


class FakeEngine:
    """Deterministic: equal samples give equal words, in segments of at most 5 s that end with the window; silence gives none.

    For tests: `delay` seconds a batch, EngineError for windows that `fails` picks, OutOfMemory above `room` windows at once,
    and `logprob` as the score. `batches` keeps the size of every batch decoded.
    """

    name = "fake"
    n_mels = 80

    def __init__(
        self,
        *,
        max_batch: int = 8,
        delay: float = 0.0,
        fails: Callable[[Window], bool] = lambda window: False,
        room: int | None = None,
        logprob: Callable[[Window], float] = lambda window: -0.2,
    ) -> None:
        self.max_batch = max_batch
        self.tokenizer = Tokenizer(51_865)
        self.batches: list[int] = []
        self.memory_freed = 0
        self.closed = False
        self._delay, self._fails, self._room, self._logprob = delay, fails, room, logprob

    def batch_key(self, decoding: Decoding) -> Hashable:
        """Temperature and task, as a real engine would; languages and prompts mix."""
        return decoding.temperature, decoding.task

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """The words of each window, after `delay` seconds."""
        if self._room is not None and len(windows) > self._room:
            raise OutOfMemory(f"the fake device has room for {self._room} windows, not for {len(windows)}")
        self.batches.append(len(windows))
        time.sleep(self._delay)
        if any(self._fails(window) for window in windows):
            raise EngineError("the fake engine was told to fail on a window")
        return [self._decode(window) for window in windows]

    def describe(self) -> dict[str, str | int | float | bool]:
        """Engine, model, device, precision, threads, batch."""
        return {"engine": self.name, "model": "none", "device": "cpu", "precision": "none", "threads": 1, "batch": self.max_batch}

    def free_memory(self) -> None:
        """Counted in `memory_freed`."""
        self.memory_freed += 1

    def close(self) -> None:
        """Noted in `closed`."""
        self.closed = True

    def _decode(self, window: Window) -> Decoded:
        decoding = window.decoding
        before, after = window.margin
        samples = window.samples[before : len(window.samples) - after]
        silent = not np.abs(samples).max(initial=0.0) > SILENCE
        said = [] if silent else list(self._segments(samples, decoding.timestamps))[: decoding.max_sampled]
        one = decoded(
            self.tokenizer,
            [token for token, *_ in said],
            decoding,
            language=decoding.language or (decoding.languages or ("en",))[0],
            language_probability=None if decoding.language else 1.0,
            avg_logprob=self._logprob(window),
            no_speech_prob=0.95 if silent else 0.05,
        )
        count = len(text_to_align(self.tokenizer, window, one).tokens)
        spoken = [(start, end) for token, start, end in said if token < self.tokenizer.eot][:count]
        times = (*(start for start, _ in spoken), *(end for _, end in spoken[-1:]))
        return replace(one, token_times=times, token_probs=(PROBABILITY,) * count)

    def _segments(self, samples: Samples, timestamps: bool) -> Iterator[tuple[int, float, float]]:
        """Timestamp, words, timestamp for each stretch of at most 5 s; each token with its start and end, the words evenly spread."""
        length = round(SECONDS_PER_SEGMENT * SAMPLE_RATE)
        for start in range(0, len(samples), length):
            stretch = samples[start : start + length]
            words = self.tokenizer.encode(
                "".join(f" {WORDS[byte % len(WORDS)]}" for byte in _digest(stretch)[: 1 + len(stretch) // 16_000])
            )
            edges = np.linspace(start, start + len(stretch), len(words) + 1) / SAMPLE_RATE
            said = list(zip(words, edges.tolist(), edges[1:].tolist(), strict=False))
            first, last = float(edges[0]), float(edges[-1])
            yield from (
                [(self._timestamp(start), first, first), *said, (self._timestamp(start + len(stretch)), last, last)] if timestamps else said
            )

    def _timestamp(self, sample: int) -> int:
        return self.tokenizer.timestamp_begin + round(sample / SAMPLE_RATE / SECONDS_PER_TIMESTAMP)


def _digest(samples: Samples) -> bytes:
    """Of the samples as 16-bit integers: what a lossless container keeps."""
    return hashlib.sha256(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()).digest()
