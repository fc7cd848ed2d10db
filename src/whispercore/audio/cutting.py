"""A recording cut at silences into stretches of at most 30 s, while it is still being read."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt

from ..options import Options
from ..types import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from .silero import FRAME
from .vad import Sound, VoiceDetector

_PER_SECOND = SAMPLE_RATE / FRAME
CHUNK = 160 * FRAME  # analysed at a time whatever the size of the blocks: the same cuts for all
TURN = 6  # chunks, some 30 s
LIMIT = WINDOW_SAMPLES // FRAME
LONG_PAUSE = int(0.5 * _PER_SECOND)  # as good as the end of a sentence
MIN_PAUSE = int(0.1 * _PER_SECOND)
LEAD_IN = int(0.4 * _PER_SECOND)  # at most so much of a pause before the stretch after it: Whisper's first timestamp is at most 1.0 s
PADDING_MS, EDGES_MS = 400, 1000
"""Kept around speech; a recording of one window costs no more with its edges, and noise is told from speech by what is around it."""
_NEAR = np.array([1.0, 1.0, 4.0, 4.0, 1.0, 1.0])
_HYSTERESIS, _LEAST = 0.15, 0.01  # Silero's own: speech lasts until its probability is that far below the threshold
_EARS = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), thread_name_prefix="ear")  # decoding needs a core, too

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class SpeechChunk:
    """A contiguous piece of the recording, at most 30 s.

    `samples`: float32, shape (n,), 16 kHz. `start`: seconds. `clip`: the start of its clip, seconds. `voiced`: for each frame of 512
    samples whether the voice detector hears speech, shape (ceil(n / 512),); None when the detector was not asked.
    """

    samples: Samples
    start: float
    clip: float = 0.0
    voiced: Mask | None = None

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / SAMPLE_RATE


def cut(blocks: Iterable[Samples], options: Options) -> Iterator[SpeechChunk]:
    """Stretches in order, without overlap, each as soon as its end is certain.

    With `options.vad` silences longer than vad_min_silence_duration_ms (and than twice the padding) are left out, all else is
    kept; a recording of at most 30 s is one stretch, or none when nobody speaks. Without it every sample is kept. Speech of more
    than 30 s is cut in the last third, at a pause where there is one, else where it is quietest; the next stretch goes on with
    the very next sample. Each clip of `clip_timestamps` is treated as a recording of its own, at its time in the whole one.
    """
    return filter(None, cut_incrementally(blocks, options))


def cut_incrementally(blocks: Iterable[Samples], options: Options) -> Iterator[SpeechChunk | None]:
    """The same, and None whenever another half a minute has been read: hours of silence are no reason to let nobody else read."""
    for start, clip in _clips(blocks, options.clip_timestamps):
        if start is None:
            yield from (None for _ in clip)
            continue
        listener = _Listener(options)
        cutter = _Cutter(start, listener.pauses, detected=listener.detector is not None)
        for number, (chunk, voiced) in enumerate(_heard(_chunks(clip), listener), 1):
            if number % TURN == 0:
                yield None
            cutter.add(chunk, voiced)
            yield from cutter.ready()
        yield from cutter.ready(final=True)


def speech(blocks: Iterable[Samples], options: Options) -> Iterator[tuple[float, float] | None]:
    """Begin and end, in seconds, of all that is to be transcribed, in order; None whenever another few seconds have been read.

    With `options.vad` it is where somebody speaks, with padding around it and what silences `cut` would keep; without it the clips
    of `clip_timestamps`, or the whole recording. The spans of a clip come when it has been read to its end.
    """
    for start, clip in _clips(blocks, options.clip_timestamps):
        if start is None:
            yield from (None for _ in clip)
            continue
        listener, length, masks = _Listener(options), 0, [np.zeros(0, bool)]
        for chunk, voiced in _heard(_chunks(clip), listener):
            length += len(chunk)
            masks.append(voiced)
            yield None
        for begin, end in _spoken(np.concatenate(masks), listener.pauses):
            yield (start + begin * FRAME) / SAMPLE_RATE, (start + min(end * FRAME, length)) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class _Pauses:
    """The options of the voice filter, in frames.

    `padding`: what is kept around speech; `edges`: the same in a recording of one window. `longest`: of the pauses that are kept, as those
    are that padding fills.
    """

    padding: int = 0
    edges: int = 0
    longest: int = 0
    click: int = 0

    @classmethod
    def of(cls, options: Options) -> _Pauses:
        if not options.vad:
            return cls()
        per_ms = _PER_SECOND / 1000
        given = options.vad_speech_pad_ms
        padding, edges = (int((default if given is None else given) * per_ms) for default in (PADDING_MS, EDGES_MS))
        longest = max(int(options.vad_min_silence_duration_ms * per_ms), 2 * padding)
        return cls(padding, edges, longest, max(0, math.ceil(options.vad_min_speech_duration_ms * per_ms) - 1))


class _Listener:
    """Which frames of a clip are voiced: from the threshold up, and on until well below it; all, without the filter."""

    def __init__(self, options: Options) -> None:
        self.pauses = _Pauses.of(options)
        self._begins = options.vad_threshold
        lower = max(self._begins - _HYSTERESIS, _LEAST) if options.vad_neg_threshold is None else options.vad_neg_threshold
        self._lasts = min(lower, self._begins)
        self.detector = VoiceDetector() if options.vad else None
        self._speaking = False

    def mask(self, probabilities: Iterable[float]) -> Mask:
        """Which frames are voiced, by the detector's probabilities, in their order."""
        voiced = []
        for probability in probabilities:
            self._speaking = probability >= (self._lasts if self._speaking else self._begins)
            voiced.append(self._speaking)
        return np.array(voiced, bool)


def _heard(chunks: Iterable[Samples], listener: _Listener) -> Iterator[tuple[Samples, Mask]]:
    """The chunks and which of their frames are voiced: one is judged while the next is heard and that after it decoded.

    On one thread the detector would take as long for an hour as a GPU does for two (bench/profile.md).
    """
    if (detector := listener.detector) is None:
        yield from ((chunk, np.ones(-(-len(chunk) // FRAME), bool)) for chunk in chunks)
        return
    hearing: tuple[Samples, Future[Sound]] | None = None
    judging: tuple[Samples, Future[Samples]] | None = None
    for chunk in chain(chunks, (None, None)):
        judged = judging and (judging[0], listener.mask(judging[1].result().tolist()))
        judging = hearing and (hearing[0], _EARS.submit(detector.judge, hearing[1].result()))
        hearing = None if chunk is None else (chunk, _EARS.submit(detector.hear, chunk))
        if judged:
            yield judged


class _Cutter:
    """The part of a clip from the last cut on: its samples, and for each frame its energy and whether it is voiced."""

    def __init__(self, start: int, pauses: _Pauses, *, detected: bool) -> None:
        self._pauses = pauses
        self._detected = detected
        self._clip = start  # the clip's first sample
        self._start = 0  # of the samples held, in frames from the clip's beginning
        self._goes_on = False  # cut amid speech: what follows is no click, however short
        self._samples = np.zeros(0, np.float32)
        self._energy = np.zeros(0, np.float32)
        self._voiced = np.zeros(0, bool)

    def add(self, chunk: Samples, voiced: Mask) -> None:
        """A whole number of frames, but for the clip's last chunk."""
        frames = np.pad(chunk, (0, -len(chunk) % FRAME)).reshape(-1, FRAME)
        self._samples = np.concatenate([self._samples, chunk])
        self._energy = np.concatenate([self._energy, np.square(frames).sum(axis=1)])
        self._voiced = np.concatenate([self._voiced, voiced])

    def ready(self, final: bool = False) -> Iterator[SpeechChunk]:
        """The stretches whose end is certain; all that is left when `final`."""
        while self._trim():
            end = self._silence(final)
            forced = end is None
            if end is None:
                if len(self._samples) <= WINDOW_SAMPLES:
                    return
                end = self._forced()
            voiced = int(self._voiced[:end].sum())
            if voiced > (0 if forced or self._goes_on else self._pauses.click):
                start = (self._clip + self._start * FRAME) / SAMPLE_RATE
                mask = self._voiced[:end].copy() if self._detected else None
                yield SpeechChunk(self._samples[: end * FRAME].copy(), start, self._clip / SAMPLE_RATE, mask)
            self._goes_on = forced and (self._goes_on or voiced > 0)
            self._drop(end)

    def _trim(self) -> bool:
        """Drop the silence before speech, but its padding; whether there is speech."""
        speech = int(self._voiced.argmax()) if self._voiced.any() else len(self._voiced)
        self._drop(max(0, speech - (self._pauses.edges if self._is_short else self._pauses.padding)))
        return bool(self._voiced.any())

    @property
    def _is_short(self) -> bool:
        """Whether all that has been read of the clip fits into one window."""
        return self._start * FRAME + len(self._samples) <= WINDOW_SAMPLES

    def _drop(self, frames: int) -> None:
        self._start += frames
        self._samples, self._energy, self._voiced = self._samples[frames * FRAME :], self._energy[frames:], self._voiced[frames:]

    def _silence(self, final: bool) -> int | None:
        """The frame before which the stretch ends because a long silence follows, None when none does or that is not certain."""
        known = len(self._voiced)
        limit = known if len(self._samples) <= WINDOW_SAMPLES else LIMIT  # 30 s end in the middle of a frame
        short = self._is_short
        if short and not final:
            return None
        speech = np.flatnonzero(self._voiced)
        silences = np.diff(np.append(speech, np.inf if final else known)) - 1
        ends = speech[-1:] if short else speech[silences > self._pauses.longest]
        padding = self._pauses.edges if short else self._pauses.padding
        return int(min(ends[0] + 1 + padding, limit)) if len(ends) and ends[0] < limit else None

    def _forced(self) -> int:
        """The best frame of the window's last third to cut before, in speech without a long silence."""
        first, last = LIMIT * 2 // 3, LIMIT
        pauses = _runs(~self._voiced[first:last])
        if pauses:
            begin, end = max(pauses, key=lambda pause: (min(pause[1] - pause[0], LONG_PAUSE), pause[0]))
            first, last = first + max(begin, end - LEAD_IN), first + end
        return first + _quietest(self._energy, first, last)


def _spoken(voiced: Mask, pauses: _Pauses) -> list[tuple[int, int]]:
    """First frame and the one after the last of all speech between long silences, padded."""
    frames = np.flatnonzero(voiced)
    islands = np.split(frames, np.flatnonzero(np.diff(frames) - 1 > pauses.longest) + 1)
    return [
        (max(0, int(island[0]) - pauses.padding), min(int(island[-1]) + 1 + pauses.padding, len(voiced)))
        for island in islands
        if len(island) > pauses.click
    ]


def _clips(blocks: Iterable[Samples], timestamps: tuple[float, ...]) -> Iterator[tuple[int | None, Iterator[Samples]]]:
    """Each clip's first sample and its blocks, in order; None and the blocks for what lies outside, which may be left unread."""
    borders = [round(seconds * SAMPLE_RATE) for seconds in timestamps] or [0]
    for border, pieces in groupby(_pieces(blocks, borders), key=lambda piece: piece[0]):
        yield (borders[border - 1] if border % 2 else None), (samples for _, samples in pieces)


def _pieces(blocks: Iterable[Samples], borders: list[int]) -> Iterator[tuple[int, Samples]]:
    """The blocks, cut at the rising borders, each piece with the number of the borders before it: odd within a clip."""
    position = 0
    for block in blocks:
        begin, position = position, position + len(block)
        while begin < position:
            passed = bisect_right(borders, begin)
            end = min([position, *borders[passed : passed + 1]])
            yield passed, block[len(block) - (position - begin) : len(block) - (position - end)]
            begin = end


def _runs(mask: Mask) -> list[tuple[int, int]]:
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
