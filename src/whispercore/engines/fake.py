"""An engine without weights: its words are a digest of the samples. For tests of everything around an engine."""

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
from .rules import make_decoded, text_to_align

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "red", "green", "blue", "black", "white", "grey")
SECONDS_PER_SEGMENT = 5.0
PROBABILITY = 0.9
"""Of every token, where a request asks for probabilities."""
SILENCE = 1e-3
"""Samples below this amplitude hold no speech."""


def load(settings: Settings, device: str) -> Engine:
    """The fake engine; only the batch size is taken from the settings."""
    return FakeEngine(max_batch=settings.batch_size or 8)


def precisions(device: str) -> tuple[str, ...]:
    """One, so that there is one: it computes nothing."""
    return ("float32",)


class FakeEngine:
    """Deterministic: equal samples give equal words, in segments of at most 5 s; silence gives none.

    For tests: a batch takes `delay` seconds; windows for which `fails` is true raise EngineError; more than `room` windows at once raise
    OutOfMemory; `logprob` gives a window's score. `batches` lists the sizes of all batches decoded.
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
        """Temperature and task. Languages and prompts may differ within a batch, as with a real engine."""
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
        timed = [] if silent else list(self._segments(samples, decoding.timestamps))[: decoding.max_sampled]
        decoded = make_decoded(
            self.tokenizer,
            [token for token, *_ in timed],
            decoding,
            language=decoding.language or (decoding.languages or ("en",))[0],
            language_probability=None if decoding.language else 1.0,
            avg_logprob=self._logprob(window),
            no_speech_prob=0.95 if silent else 0.05,
        )
        count = len(text_to_align(self.tokenizer, window, decoded).tokens)
        spans = [(start, end) for token, start, end in timed if token < self.tokenizer.eot][:count]
        times = (*(start for start, _ in spans), *(end for _, end in spans[-1:]))
        return replace(decoded, token_times=times, token_probs=(PROBABILITY,) * count)

    def _segments(self, samples: Samples, timestamps: bool) -> Iterator[tuple[int, float, float]]:
        """A timestamp, words and a timestamp for each 5 s or less: tokens with their starts and ends in seconds, words evenly spread."""
        length = round(SECONDS_PER_SEGMENT * SAMPLE_RATE)
        for start in range(0, len(samples), length):
            segment = samples[start : start + length]
            words = self.tokenizer.encode(
                "".join(f" {WORDS[byte % len(WORDS)]}" for byte in _digest(segment)[: 1 + len(segment) // 16_000])
            )
            edges = np.linspace(start, start + len(segment), len(words) + 1) / SAMPLE_RATE
            timed = list(zip(words, edges.tolist(), edges[1:].tolist(), strict=False))
            first, last = float(edges[0]), float(edges[-1])
            if timestamps:
                timed = [(self._timestamp(start), first, first), *timed, (self._timestamp(start + len(segment)), last, last)]
            yield from timed

    def _timestamp(self, sample: int) -> int:
        return self.tokenizer.timestamp_begin + round(sample / SAMPLE_RATE / SECONDS_PER_TIMESTAMP)


def _digest(samples: Samples) -> bytes:
    """Of the samples as 16-bit integers, which any lossless audio format preserves."""
    return hashlib.sha256(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()).digest()
