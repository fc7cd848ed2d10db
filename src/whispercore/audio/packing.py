"""Chunks of speech packed into one window, and the conversion of window times to recording times.

An engine takes as long for a window with one sentence as for a full one, and sparse speech is cut into single
sentences. Batched pipelines (WhisperX, Bain et al. 2023; faster-whisper) merge the chunks of their voice detector in
the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from ..types import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from .cutting import Mask, SpeechChunk

REACH = 0.4
"""Seconds around a joint within which a time may belong to either side: the padding kept of a silence by default."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWindow:
    """The audio of one window: neighbouring chunks without the silence between them, at most 30 s in all."""

    chunks: tuple[SpeechChunk, ...]

    @property
    def samples(self) -> Samples:
        """Float32, shape (n,)."""
        return self.chunks[0].samples if len(self.chunks) == 1 else np.concatenate([chunk.samples for chunk in self.chunks])

    @property
    def start(self) -> float:
        """The start in seconds of the recording."""
        return self.chunks[0].start

    @property
    def end(self) -> float:
        """The end in seconds of the recording."""
        return self.chunks[-1].start + self.chunks[-1].duration

    @property
    def offsets(self) -> list[tuple[float, SpeechChunk]]:
        """Each chunk's start within the window, in seconds, and the chunk."""
        return list(zip(accumulate((chunk.duration for chunk in self.chunks), initial=0.0), self.chunks, strict=False))

    def in_recording(self, begin: float, end: float) -> tuple[float, float]:
        """A span in seconds of `samples` as one in seconds of the recording.

        The result covers the chunks that contain more than `REACH` of the span, else the chunk that contains most of
        it. So speech after a silence that was left out does not start before that silence.
        """
        parts = [(max(begin, offset), min(end, offset + chunk.duration), chunk.start - offset) for offset, chunk in self.offsets]
        largest = max(parts, key=lambda part: part[1] - part[0])
        covered = [part for part in parts if part[1] - part[0] > REACH] or [largest]
        (first, _, first_shift), (_, last, last_shift) = covered[0], covered[-1]
        return first + first_shift, max(first + first_shift, last + last_shift)


def pack_chunks(chunks: Iterable[SpeechChunk | None], *, alone: bool = False) -> Iterator[PackedWindow | None]:
    """Pack each clip's chunks, in order, into full windows, or with `alone` one per window. Each None is passed on."""
    packed: list[SpeechChunk] = []
    room = WINDOW_SAMPLES
    for chunk in chunks:
        if chunk is None:
            yield None
            continue
        if packed and (alone or len(chunk.samples) > room or chunk.clip_start != packed[-1].clip_start):
            yield PackedWindow(tuple(packed))
            packed, room = [], WINDOW_SAMPLES
        room -= len(chunk.samples)
        _append(packed, chunk)
    if packed:
        yield PackedWindow(tuple(packed))


def _append(packed: list[SpeechChunk], chunk: SpeechChunk) -> None:
    """Append a chunk, or extend the last one if the chunk directly follows it in the recording."""
    last = packed[-1] if packed else None
    if last is not None and round((chunk.start - last.start) * SAMPLE_RATE) == len(last.samples):
        samples = np.concatenate([last.samples, chunk.samples])
        packed[-1] = replace(last, samples=samples, voiced=_joined(last.voiced, chunk.voiced))
    else:
        packed.append(chunk)


def _joined(first: Mask | None, second: Mask | None) -> Mask | None:
    """The voice mask of two adjacent chunks. The first one is a whole number of frames."""
    return None if first is None or second is None else np.concatenate([first, second])
