"""Stretches of speech that share a window, and where what is heard in it lies in the recording.

An engine works as long on a window with one sentence as on a full one, and sparse speech is cut into sentences. Batched pipelines
(WhisperX, Bain et al. 2023; faster-whisper) put their voice detector's pieces together in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from ..types import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from .cutting import Mask, SpeechChunk

REACH = 0.4
"""Seconds around a joint within which a time says little about the side that is meant: what is kept of a silence by default."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWindow:
    """Neighbouring chunks, one right after the other, at most 30 s together: what one window hears."""

    chunks: tuple[SpeechChunk, ...]

    @property
    def samples(self) -> Samples:
        """Float32, shape (n,)."""
        return self.chunks[0].samples if len(self.chunks) == 1 else np.concatenate([each.samples for each in self.chunks])

    @property
    def start(self) -> float:
        """Where it begins, in seconds of the recording."""
        return self.chunks[0].start

    @property
    def end(self) -> float:
        """Where it ends, in seconds of the recording."""
        return self.chunks[-1].start + self.chunks[-1].duration

    @property
    def offsets(self) -> list[tuple[float, SpeechChunk]]:
        """Where in the window each chunk begins, in seconds, and the chunk."""
        return list(zip(accumulate((each.duration for each in self.chunks), initial=0.0), self.chunks, strict=False))

    def in_recording(self, begin: float, end: float) -> tuple[float, float]:
        """A span in seconds of `samples` as one in seconds of the recording.

        It lies in the chunks into which it reaches by more than `REACH`, a shorter one in that which holds most of it: speech after
        a silence that was left out does not begin before that silence.
        """
        parts = [(max(begin, offset), min(end, offset + each.duration), each.start - offset) for offset, each in self.offsets]
        most = max(parts, key=lambda part: part[1] - part[0])
        reached = [part for part in parts if part[1] - part[0] > REACH] or [most]
        (first, _, shift), (_, last, shift_of_last) = reached[0], reached[-1]
        return first + shift, max(first + shift, last + shift_of_last)


def pack_chunks(chunks: Iterable[SpeechChunk | None], *, alone: bool = False) -> Iterator[PackedWindow | None]:
    """As many neighbours of a clip together as fit into a window, in order, or each `alone`; None for every None."""
    held: list[SpeechChunk] = []
    room = WINDOW_SAMPLES
    for chunk in chunks:
        if chunk is None:
            yield None
            continue
        if held and (alone or len(chunk.samples) > room or chunk.clip != held[-1].clip):
            yield PackedWindow(tuple(held))
            held, room = [], WINDOW_SAMPLES
        room -= len(chunk.samples)
        _append(held, chunk)
    if held:
        yield PackedWindow(tuple(held))


def _append(held: list[SpeechChunk], chunk: SpeechChunk) -> None:
    """Add a chunk; to the last one when it goes on where that ends."""
    if held and round((chunk.start - held[-1].start) * SAMPLE_RATE) == len(held[-1].samples):
        held[-1] = replace(
            held[-1], samples=np.concatenate([held[-1].samples, chunk.samples]), voiced=_joined(held[-1].voiced, chunk.voiced)
        )
    else:
        held.append(chunk)


def _joined(first: Mask | None, second: Mask | None) -> Mask | None:
    """The mask of two chunks that follow each other without a gap: the first one has whole frames."""
    return None if first is None or second is None else np.concatenate([first, second])
