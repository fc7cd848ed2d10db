"""A recording cut at silences into stretches of at most 30 s, while it is still being read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .types import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from .vad import FRAME, VoiceDetector

_PER_SECOND = SAMPLE_RATE / FRAME
CHUNK = 160 * FRAME  # analysed at a time whatever the size of the blocks: the same cuts for all
LIMIT = WINDOW_SAMPLES // FRAME
PADDING = int(0.4 * _PER_SECOND)  # kept around speech; Whisper's first timestamp is at most 1.0 s
MAX_PAUSE = int(2.0 * _PER_SECOND)  # a longer one is left out
LONG_PAUSE = int(0.5 * _PER_SECOND)  # as good as the end of a sentence
MIN_PAUSE = int(0.1 * _PER_SECOND)
MIN_VOICED = 2  # frames; one alone is a click
_NEAR = np.array([1.0, 1.0, 4.0, 4.0, 1.0, 1.0])
HYSTERESIS = 0.15  # Silero's own: speech lasts until its probability is that far below the threshold


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A contiguous piece of the recording, at most 30 s. `samples`: float32, shape (n,), 16 kHz; `start`: seconds."""

    samples: Samples
    start: float


def cut(blocks: Iterable[Samples], *, vad_filter: bool = True, vad_threshold: float = 0.5) -> Iterator[Stretch]:
    """Stretches in order, without overlap, each as soon as its end is certain.

    With `vad_filter` silences longer than two seconds are left out, all else is kept; a recording of at most 30 s is one
    stretch, or none when nobody speaks. Without it every sample is kept. Speech of more than 30 s is cut in the last third,
    at a pause where there is one, else where it is quietest; the next stretch goes on with the very next sample.
    """
    cutter = _Cutter(VoiceDetector() if vad_filter else None, vad_threshold)
    for chunk in _chunks(blocks):
        cutter.add(chunk)
        yield from cutter.ready()
    yield from cutter.ready(final=True)


class _Cutter:
    """The part of the recording from the last cut on: its samples, and for each frame its energy and whether it is voiced."""

    def __init__(self, detector: VoiceDetector | None, threshold: float) -> None:
        self._detector = detector
        self._threshold = threshold
        self._speaking = False
        self._start = 0  # of the samples held, in frames from the recording's beginning
        self._samples = np.zeros(0, np.float32)
        self._energy = np.zeros(0, np.float32)
        self._voiced = np.zeros(0, bool)

    def add(self, chunk: Samples) -> None:
        """A whole number of frames, but for the recording's last chunk."""
        frames = np.pad(chunk, (0, -len(chunk) % FRAME)).reshape(-1, FRAME)
        self._samples = np.concatenate([self._samples, chunk])
        self._energy = np.concatenate([self._energy, np.square(frames).sum(axis=1)])
        self._voiced = np.concatenate([self._voiced, self._hear(chunk) if self._detector else np.ones(len(frames), bool)])

    def ready(self, final: bool = False) -> Iterator[Stretch]:
        """The stretches whose end is certain; all that is left when `final`."""
        while self._trim():
            end = self._end(final)
            if end is None:
                return
            if self._voiced[:end].sum() >= MIN_VOICED or not self._detector:
                yield Stretch(self._samples[: end * FRAME].copy(), self._start * FRAME / SAMPLE_RATE)
            self._drop(end)

    def _hear(self, chunk: Samples) -> npt.NDArray[np.bool_]:
        """Voiced frames: from the threshold up, and on until well below it."""
        assert self._detector
        voiced = np.zeros(-(-len(chunk) // FRAME), bool)
        for index, probability in enumerate(self._detector(chunk)):
            self._speaking = bool(probability >= self._threshold - (HYSTERESIS if self._speaking else 0.0))
            voiced[index] = self._speaking
        return voiced

    def _trim(self) -> bool:
        """Drop the silence before speech, but its padding; whether there is speech."""
        speech = int(self._voiced.argmax()) if self._voiced.any() else len(self._voiced)
        self._drop(max(0, speech - PADDING))
        return bool(self._voiced.any())

    def _drop(self, frames: int) -> None:
        self._start += frames
        self._samples, self._energy, self._voiced = self._samples[frames * FRAME :], self._energy[frames:], self._voiced[frames:]

    def _end(self, final: bool) -> int | None:
        """The frame before which the stretch ends, None while that is not certain."""
        known = len(self._voiced)
        limit = known if len(self._samples) <= WINDOW_SAMPLES else LIMIT  # 30 s end in the middle of a frame
        short = self._start * FRAME + len(self._samples) <= WINDOW_SAMPLES
        if short and not final:
            return None
        speech = np.flatnonzero(self._voiced)
        silences = np.diff(np.append(speech, np.inf if final else known))
        ends = speech[-1:] if short else speech[silences > MAX_PAUSE]
        if len(ends) and ends[0] < limit:
            return int(min(ends[0] + 1 + PADDING, limit))
        return self._forced() if known > LIMIT else None

    def _forced(self) -> int:
        """The best frame of the window's last third to cut before, in speech without a long silence."""
        first, last = LIMIT * 2 // 3, LIMIT
        pauses = _runs(~self._voiced[first:last])
        if pauses:
            begin, end = max(pauses, key=lambda pause: (min(pause[1] - pause[0], LONG_PAUSE), pause[0]))
            first, last = first + max(begin, end - PADDING), first + end
        return first + _quietest(self._energy, first, last)


def _runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Begin and end of each run of True that is a pause."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2) if end - begin >= MIN_PAUSE]


def _quietest(energy: npt.NDArray[np.float32], first: int, last: int) -> int:
    """The frame of first … last, counted from `first`, before which it is quietest: 64 ms around it count most, then 192 ms."""
    around = np.convolve(np.pad(energy, 3, mode="edge"), _NEAR, mode="valid")[first : last + 1]
    return len(around) - 1 - int(around[::-1].argmin())  # of equals the last: longer windows


def _chunks(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """The same samples, in pieces of `CHUNK`; the last may be shorter."""
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        whole = len(held) // CHUNK * CHUNK
        yield from (held[begin : begin + CHUNK] for begin in range(0, whole, CHUNK))
        held = held[whole:]
    if len(held):
        yield held
