"""A recording, cut at silences into chunks of at most 30 s while it is being read."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt

from ..options import Options
from ..types import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from .silero import FRAME
from .threads import AudioThreads
from .vad import PieceFeatures, VoiceDetector

_FRAMES_PER_SECOND = SAMPLE_RATE / FRAME
PIECE = 160 * FRAME
"""Samples analysed at a time, whatever the size of the blocks, so that the cuts do not depend on it."""
PIECES_PER_TURN = 6
"""Pieces, about 30 s, after which the caller may read another recording."""
WINDOW_LIMIT = WINDOW_SAMPLES // FRAME
LONG_PAUSE = int(0.5 * _FRAMES_PER_SECOND)
"""Frames of a pause that is as good as the end of a sentence; a longer one is no better."""
SHORTEST_PAUSE = int(0.1 * _FRAMES_PER_SECOND)
LEAD_IN = int(0.4 * _FRAMES_PER_SECOND)
"""The most frames of a pause that are kept before the next chunk. Whisper's first timestamp is at most 1.0 s, so a longer
lead-in would put the first word out of its reach."""
PADDING_MS, SHORT_PADDING_MS = 400, 1000
"""Kept around speech in a long recording, and in one of at most 30 s.

A recording that fits one window costs the same with wide padding, and the context helps Whisper to recognise noise.
"""
_QUIETNESS_WEIGHTS = np.array([1.0, 1.0, 4.0, 4.0, 1.0, 1.0])
_HYSTERESIS, _LOWEST_THRESHOLD = 0.15, 0.01
"""Silero's own values: speech lasts until its probability falls this far below the threshold."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class SpeechChunk:
    """A contiguous part of the recording, at most 30 s.

    `samples`: float32, shape (n,), 16 kHz. `start`: seconds. `clip_start`: seconds. `voiced`: whether
    the voice detector found speech, for each frame of 512 samples, shape (ceil(n / 512),); None when the detector did
    not run.
    """

    samples: Samples
    start: float
    clip_start: float = 0.0
    voiced: Mask | None = None

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / SAMPLE_RATE


def cut(blocks: Iterable[Samples], options: Options, threads: AudioThreads | None = None) -> Iterator[SpeechChunk]:
    """The chunks in order, without overlap, each as soon as its end is certain.

    With `options.vad` silences longer than vad_min_silence_duration_ms (and than twice the padding) are left out and
    everything else is kept. A recording of at most 30 s is one chunk, or none if it has no speech. Without
    `options.vad` every sample is kept. Speech of more than 30 s is cut in the last third, at a pause if there is one,
    else at the quietest frame; the next chunk starts with the very next sample. Each clip of `clip_timestamps` is
    treated as a recording of its own and keeps its time in the whole one. `threads`: detect voices on these, beside the
    caller's thread; None: on the caller's thread.
    """
    return filter(None, cut_incrementally(blocks, options, threads))


def cut_incrementally(blocks: Iterable[Samples], options: Options, threads: AudioThreads | None = None) -> Iterator[SpeechChunk | None]:
    """The chunks of `cut`, and None after every 30 s read, so that long silence delays no other recording."""
    for start, clip in _clips(blocks, options.clip_timestamps):
        if start is None:
            yield from (None for _ in clip)
            continue
        voice_filter = _VoiceFilter(options)
        cutter = _Cutter(start, voice_filter.limits, vad_ran=voice_filter.detector is not None)
        for number, (piece, voiced) in enumerate(_with_masks(_pieces(clip), voice_filter, threads), 1):
            if number % PIECES_PER_TURN == 0:
                yield None
            cutter.add(piece, voiced)
            yield from cutter.ready()
        yield from cutter.ready(final=True)


def speech(blocks: Iterable[Samples], options: Options, threads: AudioThreads | None = None) -> Iterator[tuple[float, float] | None]:
    """Start and end, in seconds, of each span to transcribe, in order; None after every few seconds read.

    With `options.vad` a span is padded speech, including the silences that `cut` keeps. Without it the spans are the
    clips of `clip_timestamps`, or the whole recording. A clip's spans come when the clip has been read to its end.
    """
    for start, clip in _clips(blocks, options.clip_timestamps):
        if start is None:
            yield from (None for _ in clip)
            continue
        voice_filter, length, masks = _VoiceFilter(options), 0, [np.zeros(0, bool)]
        for piece, voiced in _with_masks(_pieces(clip), voice_filter, threads):
            length += len(piece)
            masks.append(voiced)
            yield None
        for begin, end in _speech_spans(np.concatenate(masks), voice_filter.limits):
            yield (start + begin * FRAME) / SAMPLE_RATE, (start + min(end * FRAME, length)) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class _Limits:
    """The durations of the voice filter, in frames.

    `padding`: kept around speech; `short_padding`: the same in a recording of one window. `longest_pause`: the longest
    pause that is kept; pauses that padding fills are always kept. `longest_click`: speech of at most this length is
    left out.
    """

    padding: int = 0
    short_padding: int = 0
    longest_pause: int = 0
    longest_click: int = 0

    @classmethod
    def of(cls, options: Options) -> _Limits:
        if not options.vad:
            return cls()
        per_ms = _FRAMES_PER_SECOND / 1000
        pad = options.vad_speech_pad_ms
        padding, short_padding = (int((default if pad is None else pad) * per_ms) for default in (PADDING_MS, SHORT_PADDING_MS))
        longest_pause = max(int(options.vad_min_silence_duration_ms * per_ms), 2 * padding)
        return cls(padding, short_padding, longest_pause, max(0, math.ceil(options.vad_min_speech_duration_ms * per_ms) - 1))


class _VoiceFilter:
    """Decides which frames of a clip are voiced. Without the VAD all are.

    Speech starts at the upper threshold and lasts until the probability falls below the lower one.
    """

    def __init__(self, options: Options) -> None:
        self.limits = _Limits.of(options)
        self._upper = options.vad_threshold
        lower = options.vad_neg_threshold
        self._lower = min(max(self._upper - _HYSTERESIS, _LOWEST_THRESHOLD) if lower is None else lower, self._upper)
        self.detector = VoiceDetector() if options.vad else None
        self._speaking = False

    def mask(self, probabilities: Iterable[float]) -> Mask:
        """Which of the next frames are voiced, by their speech probabilities."""
        voiced = []
        for probability in probabilities:
            self._speaking = probability >= (self._lower if self._speaking else self._upper)
            voiced.append(self._speaking)
        return np.array(voiced, bool)


def _with_masks(pieces: Iterable[Samples], voice_filter: _VoiceFilter, threads: AudioThreads | None) -> Iterator[tuple[Samples, Mask]]:
    """Each piece with its voice mask.

    With `threads` three pieces are in work at once: one is classified while the next is extracted and the one after
    that is decoded. On one thread detecting the voices of one hour would take as long as a GPU takes to decode two
    hours (bench/profile.md).
    """
    detector = voice_filter.detector
    if detector is None:
        yield from ((piece, np.ones(-(-len(piece) // FRAME), bool)) for piece in pieces)
        return
    if threads is None:
        for piece in pieces:
            yield piece, voice_filter.mask(detector.classify(detector.extract(piece)).tolist())
        return
    extracting: tuple[Samples, Future[PieceFeatures]] | None = None
    classifying: tuple[Samples, Future[Samples]] | None = None
    for next_piece in chain(pieces, (None, None)):
        classified = classifying and (classifying[0], voice_filter.mask(classifying[1].result().tolist()))
        classifying = extracting and (extracting[0], threads.detection.submit(detector.classify, extracting[1].result()))
        extracting = None if next_piece is None else (next_piece, threads.detection.submit(detector.extract, next_piece))
        if classified:
            yield classified


class _Cutter:
    """The part of a clip from the last cut on: its samples, and the energy and the voice mask of its frames."""

    def __init__(self, start: int, limits: _Limits, *, vad_ran: bool) -> None:
        """`start`: the clip's first sample. `vad_ran`: the masks come from the voice detector."""
        self._limits = limits
        self._vad_ran = vad_ran
        self._clip_start_sample = start
        self._start_frame = 0  # of the samples held, in frames from the clip's start
        self._mid_speech = False  # the last cut was within speech: what follows is no click, however short
        self._samples = np.zeros(0, np.float32)
        self._energy = np.zeros(0, np.float32)
        self._voiced = np.zeros(0, bool)

    def add(self, piece: Samples, voiced: Mask) -> None:
        """Append a piece. All pieces of a clip but the last one are whole frames."""
        frames = np.pad(piece, (0, -len(piece) % FRAME)).reshape(-1, FRAME)
        self._samples = np.concatenate([self._samples, piece])
        self._energy = np.concatenate([self._energy, np.square(frames).sum(axis=1)])
        self._voiced = np.concatenate([self._voiced, voiced])

    def ready(self, final: bool = False) -> Iterator[SpeechChunk]:
        """The chunks whose end is certain; all that remain when `final`."""
        while self._trim():
            end = self._silence(final)
            forced = end is None
            if end is None:
                if len(self._samples) <= WINDOW_SAMPLES:
                    return
                end = self._forced_cut()
            voiced_frames = int(self._voiced[:end].sum())
            if voiced_frames > (0 if forced or self._mid_speech else self._limits.longest_click):
                start = (self._clip_start_sample + self._start_frame * FRAME) / SAMPLE_RATE
                mask = self._voiced[:end].copy() if self._vad_ran else None
                yield SpeechChunk(self._samples[: end * FRAME].copy(), start, self._clip_start_sample / SAMPLE_RATE, mask)
            self._mid_speech = forced and (self._mid_speech or voiced_frames > 0)
            self._drop(end)

    def _trim(self) -> bool:
        """Drop silence before speech, except its padding; return whether there is speech."""
        speech = int(self._voiced.argmax()) if self._voiced.any() else len(self._voiced)
        self._drop(max(0, speech - self._padding))
        return bool(self._voiced.any())

    @property
    def _is_short(self) -> bool:
        """Whether everything read of the clip so far fits into one window."""
        return self._start_frame * FRAME + len(self._samples) <= WINDOW_SAMPLES

    @property
    def _padding(self) -> int:
        return self._limits.short_padding if self._is_short else self._limits.padding

    def _drop(self, frames: int) -> None:
        self._start_frame += frames
        self._samples, self._energy, self._voiced = self._samples[frames * FRAME :], self._energy[frames:], self._voiced[frames:]

    def _silence(self, final: bool) -> int | None:
        """The frame at which the chunk ends because a long silence follows; None if that is not certain."""
        available = len(self._voiced)
        limit = available if len(self._samples) <= WINDOW_SAMPLES else WINDOW_LIMIT  # 30 s is not a whole number of frames
        short = self._is_short
        if short and not final:
            return None
        speech = np.flatnonzero(self._voiced)
        silences = np.diff(np.append(speech, np.inf if final else available)) - 1
        ends = speech[-1:] if short else speech[silences > self._limits.longest_pause]
        return int(min(ends[0] + 1 + self._padding, limit)) if len(ends) and ends[0] < limit else None

    def _forced_cut(self) -> int:
        """The best frame to cut at in the window's last third, in speech without a long silence."""
        first, last = WINDOW_LIMIT * 2 // 3, WINDOW_LIMIT
        pauses = _pauses(~self._voiced[first:last])
        if pauses:
            begin, end = max(pauses, key=lambda pause: (min(pause[1] - pause[0], LONG_PAUSE), pause[0]))
            first, last = first + max(begin, end - LEAD_IN), first + end
        return first + _quietest(self._energy, first, last)


def _speech_spans(voiced: Mask, limits: _Limits) -> list[tuple[int, int]]:
    """First and after-last frame of each padded span of speech between long silences."""
    frames = np.flatnonzero(voiced)
    spans = np.split(frames, np.flatnonzero(np.diff(frames) - 1 > limits.longest_pause) + 1)
    return [
        (max(0, int(span[0]) - limits.padding), min(int(span[-1]) + 1 + limits.padding, len(voiced)))
        for span in spans
        if len(span) > limits.longest_click
    ]


def _clips(blocks: Iterable[Samples], timestamps: tuple[float, ...]) -> Iterator[tuple[int | None, Iterator[Samples]]]:
    """Each clip's first sample and blocks, in order; None and the blocks for audio outside of clips, to be skipped."""
    borders = [round(seconds * SAMPLE_RATE) for seconds in timestamps] or [0]
    for border, parts in groupby(_split_at(borders, blocks), key=lambda part: part[0]):
        yield (borders[border - 1] if border % 2 else None), (samples for _, samples in parts)


def _split_at(borders: list[int], blocks: Iterable[Samples]) -> Iterator[tuple[int, Samples]]:
    """The blocks, split at the ascending borders.

    Each part has the number of borders before it, which is odd within a clip.
    """
    position = 0
    for block in blocks:
        begin, position = position, position + len(block)
        while begin < position:
            passed = bisect_right(borders, begin)
            end = min([position, *borders[passed : passed + 1]])
            yield passed, block[len(block) - (position - begin) : len(block) - (position - end)]
            begin = end


def _pauses(silent: Mask) -> list[tuple[int, int]]:
    """Begin and end of each run of silent frames of at least `SHORTEST_PAUSE`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2) if end - begin >= SHORTEST_PAUSE]


def _quietest(energy: npt.NDArray[np.float32], first: int, last: int) -> int:
    """The quietest frame border between `first` and `last`, as an offset from `first`.

    A border's energy is that of the 192 ms around it, of which the inner 64 ms count four times.
    """
    around = np.convolve(np.pad(energy, 3, mode="edge"), _QUIETNESS_WEIGHTS, mode="valid")[first : last + 1]
    return len(around) - 1 - int(around[::-1].argmin())  # the last of equals, for longer chunks


def _pieces(blocks: Iterable[Samples]) -> Iterator[Samples]:
    """The same samples in pieces of `PIECE`; the last may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) // PIECE * PIECE
        yield from (rest[begin : begin + PIECE] for begin in range(0, whole, PIECE))
        rest = rest[whole:]
    if len(rest):
        yield rest
