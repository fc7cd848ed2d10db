"""What a first pass over a recording finds: its length, its loudest frame, and its speech."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..options import Options
from ..types import FRAMES_PER_SECOND, HOP, WINDOW_FRAMES, Samples
from .cutting import PIECES_PER_TURN, speech
from .spectrogram import loudest
from .threads import AudioThreads

_MARGIN_BEFORE = 2 * HOP
_MARGIN_AFTER = 200
"""Samples around a window that its first and last frames depend on: two hops before, half a transform after."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The result of the first pass: `frames` of 10 ms, `loudest` log10 mel power, `clips` to transcribe, in frames."""

    frames: int
    loudest: float
    clips: tuple[tuple[int, int], ...]


def surveyed(blocks: Iterable[Samples], options: Options, n_mels: int, threads: AudioThreads | None = None) -> Iterator[Survey | None]:
    """Read a recording to its end: None after every 30 s or less, the survey at last. `threads`: for voice detection."""
    meter = _LoudnessMeter(n_mels)
    spans: list[tuple[float, float]] = []
    for number, span in enumerate(speech(meter.metered(blocks), options, threads), 1):
        if span:
            spans.append(span)
        if number % PIECES_PER_TURN == 0:
            yield None
    frames = meter.samples // HOP
    clips = ((round(start * FRAMES_PER_SECOND), min(round(end * FRAMES_PER_SECOND), frames)) for start, end in spans)
    yield Survey(frames, meter.loudest, tuple(clips))


class _LoudnessMeter:
    """Measures the length and the strongest mel power of the samples that pass through it."""

    def __init__(self, n_mels: int) -> None:
        self.samples = 0
        self.loudest = -np.inf
        self._n_mels = n_mels

    def metered(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """The same blocks."""
        buffer = SampleBuffer(self._counted(blocks))
        seek = 0
        for block in buffer.blocks():
            while buffer.end >= (seek + WINDOW_FRAMES) * HOP + _MARGIN_AFTER:
                self._measure(*buffer.window(seek, WINDOW_FRAMES))
                seek += WINDOW_FRAMES
            yield block
        while seek * HOP < self.samples:
            frames = min(WINDOW_FRAMES, -(-(self.samples - seek * HOP) // HOP))
            self._measure(*buffer.window(seek, frames))
            seek += frames

    def _counted(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self.samples += len(block)
            yield block

    def _measure(self, samples: Samples, margin: tuple[int, int]) -> None:
        self.loudest = max(self.loudest, loudest(samples, margin, self._n_mels))


class SampleBuffer:
    """The samples around the current window. It reads on as needed and forgets what lies before the window."""

    def __init__(self, blocks: Iterable[Samples]) -> None:
        self._blocks = iter(blocks)
        self._samples = np.zeros(0, np.float32)
        self._start = 0

    @property
    def end(self) -> int:
        """The index of the sample after the last one read."""
        return self._start + len(self._samples)

    def blocks(self) -> Iterator[Samples]:
        """Read on, block by block."""
        for block in self._blocks:
            self._samples = np.concatenate([self._samples, block])
            yield block

    def window(self, seek: int, frames: int) -> tuple[Samples, tuple[int, int]]:
        """The samples of `frames` frames from frame `seek` on, at most to the end, with margins; the margins' sizes."""
        begin, end = seek * HOP, (seek + frames) * HOP
        blocks = self.blocks()
        while self.end < end + _MARGIN_AFTER and next(blocks, None) is not None:
            pass
        before = min(begin, _MARGIN_BEFORE)
        self._drop(begin - before)
        end = min(end, self.end)
        after = min(_MARGIN_AFTER, self.end - end)
        return self._samples[: before + end - begin + after].copy(), (before, after)

    def _drop(self, until: int) -> None:
        self._samples = self._samples[until - self._start :]
        self._start = until
